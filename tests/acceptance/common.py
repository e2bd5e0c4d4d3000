"""What the acceptance scripts share. The standard library only."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "interop"))

from checks import FIXTURES, Checks  # noqa: E402

__all__ = ["FIXTURES", "Checks", "command", "digest", "partial_of", "remove", "run"]


def command(halfbyte, source, to, form, out, *options):
    """The command line of one conversion."""
    return [str(part) for part in (halfbyte, "quantize", source, "--to", to, "--format", form, "--out", out, *options)]


def run(line, **options):
    """Runs a command; whatever it says and its exit code are in the result."""
    return subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)


def partial_of(out):
    """Where an unfinished output lives."""
    return out.with_name(out.name + ".partial")


def outputs(out):
    """The files of a finished output: a file, the shards of one, or those of a folder."""
    if out.is_dir():
        return sorted(path for path in out.iterdir() if path.is_file())
    return [out] if out.exists() else sorted(out.parent.glob(f"{out.stem}-?????-of-?????{out.suffix}"))


def digest(out):
    """File name -> SHA-256 of each file of an output."""
    sums = {}
    for path in outputs(out):
        with open(path, "rb") as file:
            sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def remove(out):
    """Removes an output and what an unfinished run left of it."""
    for path in [*outputs(out), out, partial_of(out)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
