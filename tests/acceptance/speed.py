"""Whole-process time against llama-quantize, the same model to the same types, one after the other in one run.

    speed.py HALFBYTE LLAMA_QUANTIZE SCRATCH CHECKPOINT [FORMAT…]

llama-quantize reads a BF16 GGUF (made first, not timed), halfbyte the checkpoint. Both run twice and the faster time counts; the
source is in the page cache. llama-quantize is built from llama.cpp with `cmake -DCMAKE_BUILD_TYPE=Release`, target `llama-quantize`.
"""

import os
import sys
import time
from pathlib import Path

from common import Checks, command, remove, run

FORMATS = (
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4", "q2_k", "q3_k_m", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k", "iq4_nl", "iq4_xs",
)  # fmt: skip
THREADS = str(os.cpu_count())
NAMES = {"mxfp4": "MXFP4_MOE"}


def timed(line, out):
    """(seconds of wall clock, of CPU)"""
    remove(out)
    before, begin = os.times(), time.monotonic()
    done = run(line)
    wall, after = time.monotonic() - begin, os.times()
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(line)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def main(halfbyte, peer, scratch, checkpoint, *forms):
    checks, scratch = Checks(), Path(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    source, ours, theirs = scratch / "bf16.gguf", scratch / "halfbyte.gguf", scratch / "llama-quantize.gguf"
    timed(command(halfbyte, checkpoint, "gguf", "bf16", source), source)

    def one(form):
        # MXFP4 is not a mix of llama-quantize's for dense models: --pure makes it one type throughout.
        pure = ["--pure"] if form == "mxfp4" else []
        their_line = [peer, *pure, str(source), str(theirs), NAMES.get(form, form.upper()), THREADS]
        our_line = command(halfbyte, checkpoint, "gguf", form, ours, "--threads", THREADS)
        times = [(timed(our_line, ours), timed(their_line, theirs)) for _ in range(2)]
        our_time, their_time = (min(pair[i] for pair in times) for i in (0, 1))
        checks.that(
            our_time[0] <= their_time[0],
            f"{form}: halfbyte {our_time[0]:.2f} s (CPU {our_time[1]:.1f}), llama-quantize {their_time[0]:.2f} s "
            f"(CPU {their_time[1]:.1f}): {their_time[0] / our_time[0]:.2f} times as fast",
        )
        for out in (ours, theirs):
            remove(out)

    for form in forms or FORMATS:
        checks.case(form, one, form)
    remove(source)
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
