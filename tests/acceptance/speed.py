"""Whole-process time against llama-quantize, the same model to the same types, one after the other in one run.

    speed.py HALFBYTE LLAMA_QUANTIZE SCRATCH CHECKPOINT [FORMAT…]

llama-quantize reads a BF16 GGUF (made first, not timed), halfbyte the checkpoint. Both run twice and the faster time counts; the
source is in the page cache. Prints the table of docs/benchmarks.md.
"""

import os
import sys
from pathlib import Path

from common import Checks, command, measure, remove

FORMATS = (
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4", "q2_k", "q3_k_m", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k", "iq4_nl", "iq4_xs",
    "f16", "bf16",
)  # fmt: skip
THREADS = str(os.cpu_count())
NAMES = {"mxfp4": "MXFP4_MOE"}


def timed(line, out):
    """What one run takes, from nothing."""
    remove(out)
    return measure(line)


def main(halfbyte, peer, scratch, checkpoint, *forms):
    checks, scratch = Checks(), Path(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    source, ours, theirs = scratch / "bf16.gguf", scratch / "halfbyte.gguf", scratch / "llama-quantize.gguf"
    timed(command(halfbyte, checkpoint, "gguf", "bf16", source), source)

    rows = ["| type | halfbyte s | CPU s | llama-quantize s | CPU s | ratio |", "|---|---|---|---|---|---|"]

    def one(form):
        # MXFP4 is not a mix of llama-quantize's for dense models: --pure makes it one type throughout.
        pure = ["--pure"] if form == "mxfp4" else []
        their_line = [peer, *pure, source, theirs, NAMES.get(form, form.upper()), THREADS]
        our_line = command(halfbyte, checkpoint, "gguf", form, ours, "--threads", THREADS)
        pairs = [(timed(our_line, ours), timed(their_line, theirs)) for _ in range(2)]
        we, they = (min(costs) for costs in zip(*pairs))
        ratio = they.wall / we.wall
        checks.that(ratio >= 1, f"{form}: {ratio:.2f} times as fast as llama-quantize")
        rows.append(f"| `{form}` | {we.wall:.2f} | {we.cpu:.1f} | {they.wall:.2f} | {they.cpu:.1f} | {ratio:.2f} |")
        for out in (ours, theirs):
            remove(out)

    for form in forms or FORMATS:
        checks.case(form, one, form)
    remove(source)
    print("\n", *rows, sep="\n", end="\n\n")
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
