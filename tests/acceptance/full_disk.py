"""A disk that is too small is a clear error with nothing under the final name; after room is made the same command ends well.

    full_disk.py HALFBYTE SCRATCH

Mounts a tmpfs, so it needs root (or a user namespace: `unshare --map-root-user --mount python3 full_disk.py …`).
"""

import subprocess
import sys
from pathlib import Path

from common import FIXTURES, Checks, command, digest, partial_of, remove, run


def main(halfbyte, scratch):
    checks, scratch = Checks(), Path(scratch)
    source, disk, elsewhere = FIXTURES / "tiny-deepseek", scratch / "disk", scratch / "whole.gguf"
    disk.mkdir(parents=True, exist_ok=True)
    remove(elsewhere)
    done = run(command(halfbyte, source, "gguf", "q4_k_m", elsewhere))
    size = elsewhere.stat().st_size
    checks.that(done.returncode == 0, f"with room it takes {size:,} bytes")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size + (2 << 20)}", "tmpfs", disk], check=True)
    try:
        ballast, out = disk / "ballast", disk / "whole.gguf"
        ballast.write_bytes(bytes(4 << 20))
        line = command(halfbyte, source, "gguf", "q4_k_m", out)
        full = run(line)
        checks.that(full.returncode == 1, f"without room: exit code {full.returncode}")
        checks.that("room" in full.stderr and "same command" in full.stderr, f"it says what to do: {full.stderr.strip()}")
        checks.that(not out.exists(), "nothing is under the final name")
        left = sum(path.stat().st_blocks * 512 for path in partial_of(out).glob("*"))
        checks.that(left < 1 << 20, f"it did not fill the disk with what it could not finish ({left} bytes)")
        ballast.unlink()
        done = run(line)
        checks.that(done.returncode == 0, f"after room is made the same command ends well {done.stderr.strip()}")
        checks.that(digest(out) == digest(elsewhere), "SHA-256 as with room from the start")
    finally:
        subprocess.run(["umount", disk], check=True)
    remove(elsewhere)
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:3])
