"""Perplexity, KL divergence and speed against llama-perplexity: the same files, text, chunks and threads, in one run.

    perplexity.py HALFBYTE LLAMA_BIN SCRATCH CHECKPOINT TEXT CONTEXT CHUNKS [TYPE…]

The files of each TYPE (Q4_K_M …) are llama-quantize's own. llama.cpp rounds activations to 8 bits before it multiplies them with quantized
weights, which adds to the divergence that it measures; halfbyte measures the weights alone. So llama-perplexity is also given the same
weights unpacked to F32, which it multiplies as they are: there both must agree. LLAMA_BIN is the folder of llama-quantize and llama-perplexity, built from
llama.cpp with `cmake -DCMAKE_BUILD_TYPE=Release`. Both run the F16 model twice and the faster time counts.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

from common import Checks, command, remove, run

THREADS = str(os.cpu_count())
# Of llama-perplexity's mean divergence; its logits are stored in 16 bits.
KLD_MARGIN = 0.02
PERPLEXITY_MARGIN = 0.0002


def checked(line):
    done = run(line)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, line))}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout + done.stderr


def number(pattern, text):
    found = re.search(pattern, text)
    if not found:
        raise RuntimeError(f"nothing like {pattern} in: {text[-1500:]}")
    return float(found.group(1))


def main(halfbyte, llama, scratch, checkpoint, text, context, chunks, *types):
    checks, scratch, llama = Checks(), Path(scratch), Path(llama)
    scratch.mkdir(parents=True, exist_ok=True)
    f16, base, file, unpacked = (scratch / name for name in ("f16.gguf", "base.kld", "peer.gguf", "unpacked.gguf"))
    checked(command(halfbyte, checkpoint, "gguf", "f16", f16, "--overwrite"))

    # A batch of four chunks, as llama-perplexity's default of 2048 tokens at a context of 512.
    peer = [llama / "llama-perplexity", "-f", text, "-c", context, "--chunks", chunks, "-t", THREADS, "-b", str(4 * int(context))]

    def verify(model, *more):
        line = [halfbyte, "verify", model, "--text", text, "--context", context, "--chunks", chunks, "--threads", THREADS]
        return json.loads(run([*line, "--json", *more]).stdout)

    def speed():
        ours, theirs = [], []
        for _ in range(2):
            begin = time.monotonic()
            result = verify(f16)
            ours.append(time.monotonic() - begin)
            begin = time.monotonic()
            output = checked([*peer, "-m", f16])
            theirs.append(time.monotonic() - begin)
        expected = number(r"Final estimate: PPL = ([\d.]+)", output)
        checks.that(
            abs(result["perplexity"] / expected - 1) < PERPLEXITY_MARGIN,
            f"F16: perplexity {result['perplexity']:.4f}, llama-perplexity's {expected:.4f}",
        )
        tokens = int(context) * int(chunks)
        checks.that(
            min(ours) <= min(theirs),
            f"F16: {tokens / min(ours):.0f} tokens/s of the whole process, llama-perplexity {tokens / min(theirs):.0f}: "
            f"{min(theirs) / min(ours):.2f} times as fast",
        )
        print(f"     peak memory {result['peak_rss_bytes'] / 1e6:.0f} MB")

    def divergence(model):
        output = checked([*peer, "-m", model, "--kl-divergence-base", base, "--kl-divergence"])
        return number(r"Mean +KLD: +([\d.]+)", output), number(r"Same top p: +([\d.]+)", output)

    def one(kind):
        checked([llama / "llama-quantize", f16, file, kind, THREADS])
        checked(command(halfbyte, file, "gguf", "f32", unpacked, "--overwrite"))
        (rounded, _), (exact, top) = divergence(file), divergence(unpacked)
        ours = verify(file, "--against", f16)
        found = ours["mean_kld"]
        checks.that(
            abs(found / exact - 1) < KLD_MARGIN,
            f"{kind}: mean KLD {found:.6f}; llama-perplexity's {exact:.6f} of the weights ({100 * (found / exact - 1):+.2f} %), "
            f"{rounded:.6f} with activations in 8 bits ({100 * (found / rounded - 1):+.2f} %); "
            f"same top token {100 * ours['same_top1']:.2f} %, {top:.2f} %; perplexity {ours['perplexity']:.3f}",
        )
        print(f"     peak memory of both {ours['peak_rss_bytes'] / 1e6:.0f} MB, {ours['tokens_per_second']:.0f} tokens/s")

    checks.case("F16", speed)
    if types:
        checked([*peer, "-m", f16, "--kl-divergence-base", base])
    for kind in types:
        checks.case(kind, one, kind)
    for made in (f16, base, file, unpacked):
        remove(made)
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
