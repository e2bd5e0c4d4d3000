"""What a dry run says that well-known models take, against the sizes that were published. Reads headers only.

    published_sizes.py HALFBYTE SCRATCH
"""

import json
import sys
from pathlib import Path

import header_checkpoints
import r1_checkpoint
from common import Checks, command, remove, run

MARGIN = 0.005
MIB = 2**20

# IQ4_XS of DeepSeek-R1 was published with importances of the weights. Without any, llama-quantize as well as halfbyte keeps what goes down
# again in the first eighth of the layers in Q5_K, which is 2.42 GB more here: without it we come to 357.7 GB. Of the rest 0.53 GB are
# `attn_k_b` and `attn_v_b`, Q8_0 in all of our mixes.
Q5_K, IQ4_XS = 5.5, 4.25
PUBLISHED = [
    ("llama-3-70b", "gguf", "q4_k_m", 40_543 * MIB),
    ("deepseek-r1", "gguf", "q4_k_m", 404.4e9),
    ("deepseek-r1", "gguf", "iq4_xs", 357e9),
    ("deepseek-r1", "mlx", "4bit-g64", 377.5e9),
]


def make(model, out):
    if model == "deepseek-r1":
        r1_checkpoint.main("whole", out)
    else:
        header_checkpoints.make(model, out)


def tensors(halfbyte, source, to, form, out):
    done = run([*command(halfbyte, source, to, form, out), "--dry-run", "--json"])
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)["tensors"]


def check(checks, halfbyte, scratch, model, to, form, published):
    source = scratch / model
    if not source.exists():
        make(model, source)
    found = tensors(halfbyte, source, to, form, scratch / f"{model}-{form}")
    size, as_published = sum(tensor["bytes"] for tensor in found), ""
    if form == "iq4_xs":
        kept = sum(tensor["bytes"] for tensor in found if tensor["format"] == "q5_k" and "_down" in tensor["name"])
        as_published = f", {size:,} as it is without importances"
        size -= round(kept * (1 - IQ4_XS / Q5_K))
    off = size / published - 1
    checks.that(abs(off) <= MARGIN, f"{model} {form}: tensors of {size:,} bytes{as_published}; published {published:,.0f}: {off:+.2%}, allowed {MARGIN:.1%}")


def main(halfbyte, scratch):
    checks, scratch = Checks(), Path(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    for case in PUBLISHED:
        checks.case(" ".join(case[:3]), check, checks, halfbyte, scratch, *case)
    for model in {case[0] for case in PUBLISHED}:
        remove(scratch / model)
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:3])
