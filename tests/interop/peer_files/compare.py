"""halfbyte's logits of the peers' folders against the peers' own.

    compare.py HALFBYTE INDEX.md [--only WORDS] [--tolerance 1e-3] [--threads N]

For each folder that INDEX.md (made by index.py) names, `halfbyte verify FOLDER --tokens … --logits …` runs on the ids beside it. Printed is the largest
difference as a share of the largest logit; a folder fails above its tolerance (the index's, of engines that round more, else --tolerance), and where
halfbyte refuses it, with what it said. Exit code 1 if any failed.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors import safe_open


def tensor(path, name):
    with safe_open(path, "np") as file:
        return file.get_tensor(name)


def rows(index):
    """(folder, tolerance or None) of each line of the table."""
    for line in index.read_text().splitlines():
        found = re.match(r"\| `([^`]+)` \|", line)
        if found:
            tolerance = re.search(r"\| tolerance ([\d.e-]+)", line)
            yield index.parent / found[1], float(tolerance[1]) if tolerance else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("halfbyte")
    parser.add_argument("index", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--threads", default="1")
    options = parser.parse_args()
    passed = failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "logits.safetensors"
        for folder, own in rows(options.index):
            if options.only not in folder.name:
                continue
            beside = folder.with_name(f"{folder.name}.logits")
            out.unlink(missing_ok=True)
            command = [options.halfbyte, "verify", folder, "--tokens", beside / "ids.safetensors", "--logits", out, "--device", "cpu", "--threads", options.threads]
            ran = subprocess.run(command, capture_output=True, text=True)
            tolerance = own or options.tolerance
            if ran.returncode or not out.exists():
                good, said = False, f"exit code {ran.returncode}: {ran.stderr.strip()}"
            else:
                expected, ours = tensor(beside / "logits.safetensors", "logits"), tensor(out, "logits")
                if ours.shape != expected.shape or not np.isfinite(ours).all():
                    good, said = False, f"shape {ours.shape}, expected {expected.shape}, or not finite"
                else:
                    off = np.abs(ours - expected).max() / np.abs(expected).max()
                    good, said = off <= tolerance, f"off by {off:.1e} of the largest logit (allowed {tolerance:.0e})"
                    if (rounded := beside / "logits-unpacked.safetensors").exists():
                        off = np.abs(ours - tensor(rounded, "logits")).max() / np.abs(expected).max()
                        good, said = good or off <= tolerance, f"{said}, by {off:.1e} from weights rounded to the type of their scales"
            passed, failed = passed + good, failed + (not good)
            print(f"{'ok' if good else 'FAILED':6} {folder.name:52} {said}", flush=True)
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
