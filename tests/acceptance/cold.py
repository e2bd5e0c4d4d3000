"""What a file's layout is worth when it is loaded cold: time and major page faults of mapping it and touching every page, layer by
layer in order of execution, with none of it in the page cache; and what a loader can map without a copy.

    cold.py HALFBYTE LLAMA_QUANTIZE SCRATCH CHECKPOINT [ROUNDS]

Ours, with tensors at multiples of 32 bytes and of 16 KiB, against llama-quantize's file of the same tensors and types (block by
block, in a block by name, the head first). The page cache is dropped with posix_fadvise; a system that keeps pages anyway ends the
check. A page that the kernel reads ahead is no major fault. Rounds are interleaved; the fastest and the median count.
"""

import ctypes
import mmap
import os
import re
import resource
import statistics
import sys
import time
from pathlib import Path

from common import Checks, command, remove, run
from gguf import GGUFReader

PAGE = mmap.PAGESIZE
APPLE_PAGE = 16384


def made(line):
    done = run(line)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(line)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def places(path):
    """Tensor -> (offset, length), in order of the file."""
    tensors = sorted(GGUFReader(path).tensors, key=lambda tensor: tensor.data_offset)
    return {tensor.name: (int(tensor.data_offset), int(tensor.n_bytes)) for tensor in tensors}


def drop(path):
    """Takes the file out of the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        # A private mapping, for ctypes asks for one that could be written.
        with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as view:
            resident = (ctypes.c_ubyte * (-(-len(view) // PAGE)))()
            first = ctypes.c_char.from_buffer(view)
            failed = ctypes.CDLL(None, use_errno=True).mincore(ctypes.byref(first), ctypes.c_size_t(len(view)), resident)
            del first
        if failed or sum(page & 1 for page in resident) > 16:
            raise RuntimeError(f"{path}: the system keeps it in its page cache")


def cold(path, ranges):
    """(seconds, major faults) of touching these ranges of the file, nothing of which is in memory."""
    drop(path)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        faults, begin = resource.getrusage(resource.RUSAGE_SELF).ru_majflt, time.monotonic()
        for offset, length in ranges:
            first = offset // PAGE * PAGE
            view[first : offset + length : PAGE]
        seconds = time.monotonic() - begin
        return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults


def layer_of(name):
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else None


def shared_pages(tensors):
    """Pages of 16 KiB in which two layers meet: a device that maps its own layers maps them too."""
    owners = {}
    for name, (offset, length) in tensors.items():
        for page in {offset // APPLE_PAGE, (offset + length - 1) // APPLE_PAGE}:
            owners.setdefault(page, set()).add(layer_of(name))
    return sum(len(layers) > 1 for layers in owners.values())


def main(halfbyte, peer, scratch, checkpoint, rounds="7"):
    checks, scratch = Checks(), Path(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    files = {name: scratch / f"{name}.gguf" for name in ("ours", "aligned", "theirs")}
    source = scratch / "bf16.gguf"
    made(command(halfbyte, checkpoint, "gguf", "bf16", source))
    made(command(halfbyte, checkpoint, "gguf", "q4_0", files["ours"]))
    made(command(halfbyte, checkpoint, "gguf", "q4_0", files["aligned"], "--align", APPLE_PAGE))
    made([peer, str(source), str(files["theirs"]), "Q4_0"])
    remove(source)
    tensors = {name: places(path) for name, path in files.items()}
    order = list(tensors["ours"])
    checks.that(list(tensors["aligned"]) == order and sorted(tensors["theirs"]) == sorted(order), f"{len(order)} tensors in each")

    found = {name: [] for name in files}
    for _ in range(int(rounds)):
        for name, path in files.items():
            found[name].append(cold(path, [tensors[name][tensor] for tensor in order]))
    for name, path in files.items():
        seconds, faults = zip(*found[name])
        mapped = sum(offset % APPLE_PAGE == 0 for offset, _ in tensors[name].values())
        print(
            f"{name:8} {path.stat().st_size / 1e6:6.1f} MB  fastest {min(seconds):.3f} s, median {statistics.median(seconds):.3f} s, "
            f"{statistics.median(faults):.0f} major faults; {mapped} of {len(order)} tensors begin a page of "
            f"16 KiB, {shared_pages(tensors[name])} pages hold parts of two layers"
        )
    ours, theirs = (statistics.median(faults for _, faults in found[name]) for name in ("ours", "theirs"))
    checks.that(ours <= theirs, "no more major faults than in llama-quantize's order")
    for path in files.values():
        remove(path)
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
