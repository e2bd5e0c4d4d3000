"""What the checks share: running halfbyte and counting what holds. The standard library only."""

import subprocess
import sys
import traceback
from pathlib import Path

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "models"

# Contractions, digits, runs of spaces and newlines, accents, scripts, an emoji, special tokens: where pre-tokenizers differ.
TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.\n\n"
    "She paid 1815 pounds, 12 shillings & sixpence -- they'd said \"£1,234.56\"; DON'T they'll?\r\n\t  naïve café, 東京 🙂   end"
    "<|im_end|>\n<|im_start|>user\nfn main() { let x = a[i]+=1; }  \n\n\n"
)


class Checks:
    """Counts checks, prints each, and ends the process with 1 if one failed."""

    def __init__(self):
        self.passed = self.failed = 0

    def that(self, holds, what):
        print(f"{'ok    ' if holds else 'FAILED'} {what}", flush=True)
        if holds:
            self.passed += 1
        else:
            self.failed += 1

    def case(self, name, function, *arguments):
        """Runs one case; an exception in it is a failed check, and the other cases still run."""
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001: whatever went wrong is the finding
            if not isinstance(error, RuntimeError):
                traceback.print_exc()
            self.that(False, f"{name}: {error}")

    def close(self):
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        sys.exit(1 if self.failed else 0)


def run(halfbyte, *arguments):
    """Runs halfbyte; raises what it says if it fails."""
    command = [str(part) for part in (halfbyte, *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done


def quantize(halfbyte, source, to, form, out, *options):
    """`halfbyte quantize`, anew."""
    run(halfbyte, "quantize", source, "--to", to, "--format", form, "--out", out, "--overwrite", *options)
    return Path(out)
