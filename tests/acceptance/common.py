"""What the acceptance scripts share. The standard library only."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parent.parent / "interop"))

from checks import FIXTURES, Checks  # noqa: E402

__all__ = ["FIXTURES", "Checks", "Cost", "checked", "command", "digest", "killed", "measure", "number", "outputs", "partial_of", "remove", "run", "size_of"]


def command(halfbyte, source, to, form, out, *options):
    """The command line of one conversion."""
    return [str(part) for part in (halfbyte, "quantize", source, "--to", to, "--format", form, "--out", out, *options)]


def run(line, **options):
    """Runs a command; whatever it says and its exit code are in the result."""
    return subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)


def killed(line, seconds, environment):
    """Runs a command, and kills it after so many seconds; whether it was killed, and did not end first. Raises what it says if it failed."""
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(line)} ended with {process.returncode}: {said}")
    return False


def checked(line, errors=True):
    """What a command prints, on standard error as well if `errors`; raises it if the command failed."""
    line = [str(part) for part in line]
    done = run(line)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(line)} ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout + (done.stderr if errors else "")


def number(pattern, text):
    """The number that the pattern's group finds in what a command printed."""
    found = re.search(pattern, text)
    if not found:
        raise RuntimeError(f"nothing like {pattern} in: {text[-1500:]}")
    return float(found.group(1))


class Cost(NamedTuple):
    """What a process took: seconds of wall clock and of CPU, bytes of memory at its peak, and what it printed."""

    wall: float
    cpu: float
    peak: int
    said: str

    def then(self, other):
        """Both, one after the other."""
        return Cost(self.wall + other.wall, self.cpu + other.cpu, max(self.peak, other.peak), self.said + other.said)


def measure(line, **environment):
    """Runs a command line to its end and says what it took; raises what it printed if it failed."""
    line = [str(part) for part in line]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        begin = time.monotonic()
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=os.environ | environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        if process.returncode != 0:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(line)}: {errors.read()[-3000:]}")
        # Kilobytes, but bytes on macOS.
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return Cost(wall, usage.ru_utime + usage.ru_stime, peak, out.read())


def partial_of(out):
    """Where an unfinished output lives."""
    return out.with_name(out.name + ".partial")


def outputs(out):
    """The files of a finished output: a file, the shards of one, or those of a folder."""
    if out.is_dir():
        return sorted(path for path in out.iterdir() if path.is_file())
    return [out] if out.exists() else sorted(out.parent.glob(f"{out.stem}-?????-of-?????{out.suffix}"))


def size_of(out):
    """Bytes of a finished output."""
    return sum(path.stat().st_size for path in outputs(out))


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
