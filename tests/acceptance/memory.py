"""Peak memory stays bounded, and no copy of the model appears on the disk on the way.

    memory.py HALFBYTE SCRATCH BIG R1_LAYER

BIG and R1_LAYER are the checkpoints of make_big.py and r1_checkpoint.py. Memory is `Maximum resident set size` of `/usr/bin/time -v`.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import Checks, command, partial_of, outputs, remove

MB = 1_000_000


def measure(line, out, temporary):
    """(seconds, peak memory, most bytes of the disk in use) of one run."""
    temporary.mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(temporary)}
    process = subprocess.Popen(
        ["/usr/bin/time", "-v", *line], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    begin, most = time.monotonic(), 0
    while process.poll() is None:
        places = [*outputs(out), *partial_of(out).glob("*"), *temporary.glob("**/*")]
        try:
            most = max(most, sum(path.stat().st_blocks * 512 for path in places))
        except FileNotFoundError:
            pass  # moved between listing and looking
        time.sleep(0.2)
    said = process.stderr.read()
    if process.returncode != 0:
        raise RuntimeError(said)
    peak = int(re.search(r"Maximum resident set size \(kbytes\): (\d+)", said).group(1)) * 1024
    return time.monotonic() - begin, peak, most


def one(checks, halfbyte, scratch, source, to, form, ceiling):
    out, temporary = scratch / (f"{form}.gguf" if to == "gguf" else form), scratch / "tmp"
    remove(out)
    seconds, peak, most = measure(command(halfbyte, source, to, form, out), out, temporary)
    size = sum(path.stat().st_size for path in outputs(out))
    label = f"{source.name} {to} {form}"
    checks.that(peak <= ceiling, f"{label}: peak memory {peak / MB:.0f} MB <= {ceiling / MB:.0f} MB, {seconds:.1f} s")
    checks.that(most <= size + MB, f"{label}: {most / MB:.0f} MB of disk in use at most, for an output of {size / MB:.0f} MB")
    remove(out)
    shutil.rmtree(temporary)


def main(halfbyte, scratch, big, layer):
    checks, scratch = Checks(), Path(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    for to, form in (("gguf", "q4_k_m"), ("gguf", "q8_0"), ("gguf", "iq4_xs"), ("mlx", "4bit-g64")):
        checks.case(form, one, checks, halfbyte, scratch, Path(big), to, form, 700 * MB)
    for to, form in (("gguf", "q4_k_m"), ("mlx", "4bit-g64")):
        checks.case(form, one, checks, halfbyte, scratch, Path(layer), to, form, 1500 * MB)
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:5])
