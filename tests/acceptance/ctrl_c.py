"""Ctrl-C ends a run with exit code 130 and says how to go on; going on gives the bytes of an unbroken run. Going on with another
recipe, or from a source that has changed since, is refused with the reason.

    ctrl_c.py HALFBYTE SCRATCH CHECKPOINT

The checkpoint should take some seconds to convert (`make_big.py OUT 4`): it is copied, for the copy is changed.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from common import Checks, command, digest, partial_of, remove, run


def interrupt(line, seconds):
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, said = process.communicate()
    return process.returncode, said, time.monotonic() - begin


def main(halfbyte, scratch, checkpoint):
    checks, scratch = Checks(), Path(scratch)
    source, whole, out = scratch / "source", scratch / "whole.gguf", scratch / "out.gguf"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(checkpoint, source)
    for path in (whole, out):
        remove(path)
    begin = time.monotonic()
    done = run(command(halfbyte, source, "gguf", "q4_k_m", whole))
    took = time.monotonic() - begin
    checks.that(done.returncode == 0, f"an unbroken run takes {took:.1f} s {done.stderr.strip()}")
    line = command(halfbyte, source, "gguf", "q4_k_m", out)

    code, said, waited = interrupt(line, 0.6 * took)
    checks.that(code == 130, f"Ctrl-C: exit code {code} after {waited:.1f} s")
    checks.that("same command" in said, f"Ctrl-C says how to go on: {said.strip().splitlines()[-1:]}")
    checks.that(not out.exists() and partial_of(out).exists(), "the unfinished output is kept, and not under its final name")

    other = run(command(halfbyte, source, "gguf", "q5_k_m", out))
    checks.that(other.returncode == 1 and "q4_k_m" in other.stderr, f"another recipe is refused: {other.stderr.strip()}")

    shard = sorted(source.glob("*.safetensors"))[0]
    stat = shard.stat()
    with open(shard, "r+b") as file:
        file.seek(-2, os.SEEK_END)
        last = file.read(2)
        file.seek(-2, os.SEEK_END)
        file.write(bytes([last[0] ^ 1, last[1]]))
    changed = run(line)
    checks.that(changed.returncode == 1 and shard.name in changed.stderr, f"a changed source is refused: {changed.stderr.strip()}")
    checks.that(not out.exists(), "neither wrote anything under the final name")

    with open(shard, "r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(last)
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    begin = time.monotonic()
    done = run(line)
    checks.that(done.returncode == 0, f"the same command goes on and ends in {time.monotonic() - begin:.1f} s {done.stderr.strip()}")
    checks.that(list(digest(out).values()) == list(digest(whole).values()), "SHA-256 as in the unbroken run")

    again = run(line)
    checks.that(again.returncode == 0 and "already" in again.stdout, f"run once more, it says: {again.stdout.strip()}")
    for path in (whole, out):
        remove(path)
    shutil.rmtree(source)
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:4])
