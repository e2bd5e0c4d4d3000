"""Perplexity, KL divergence and speed against llama-perplexity: the same files, text, chunks and threads, in one run.

    perplexity.py HALFBYTE LLAMA_BIN SCRATCH CHECKPOINT TEXT CONTEXT CHUNKS [TYPE…]

The files of each TYPE (Q4_K_M …) are llama-quantize's own. llama.cpp rounds activations to 8 bits before it multiplies them with quantized
weights, which adds to the divergence that it measures; halfbyte measures the weights alone. So llama-perplexity is also given the same
weights unpacked to F32, which it multiplies as they are: there both must agree. LLAMA_BIN is the folder of llama-quantize and llama-perplexity, built from
llama.cpp with `cmake -DCMAKE_BUILD_TYPE=Release`. Speeds are of whole processes, each run twice, and the faster time counts.
"""

import json
import os
import sys
import time
from pathlib import Path

from common import Checks, checked, command, number, remove, run

THREADS = str(os.cpu_count())
# Of llama-perplexity's mean divergence; its logits are stored in 16 bits.
KLD_MARGIN = 0.02
PERPLEXITY_MARGIN = 0.0002


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

    speeds = []

    def speed(name, model):
        """Times all three, each twice, in turn; the faster time counts."""
        runs = {"exact": lambda: verify(model), "--fast": lambda: verify(model, "--fast"), "peer": lambda: checked([*peer, "-m", model])}
        times, results = {way: [] for way in runs}, {}
        for _ in range(2):
            for way, go in runs.items():
                begin = time.monotonic()
                results[way] = go()
                times[way].append(time.monotonic() - begin)
        tokens = int(context) * int(chunks)
        exact, fast, theirs = (tokens / min(times[way]) for way in runs)
        result = results["exact"]
        speeds.append(
            f"| {name} | {exact:.0f} | {exact / theirs:.2f} | {fast:.0f} | {fast / theirs:.2f} | {theirs:.0f} "
            f"| {result['peak_rss_bytes'] / 1e6:.0f} MB |"
        )
        checks.that(exact >= theirs, f"{name}: {exact:.0f} tokens/s of the whole process, llama-perplexity {theirs:.0f}")
        apart = results["--fast"]["perplexity"] / result["perplexity"] - 1
        checks.that(abs(apart) < PERPLEXITY_MARGIN, f"{name}: --fast changes the perplexity by {100 * apart:+.4f} %")
        return result, results["peer"]

    def floats():
        result, output = speed("F16", f16)
        expected = number(r"Final estimate: PPL = ([\d.]+)", output)
        checks.that(
            abs(result["perplexity"] / expected - 1) < PERPLEXITY_MARGIN,
            f"F16: perplexity {result['perplexity']:.4f}, llama-perplexity's {expected:.4f}",
        )

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
        speed(kind, file)

    checks.case("F16", floats)
    if types:
        checked([*peer, "-m", f16, "--kl-divergence-base", base])
    for kind in types:
        checks.case(kind, one, kind)
    for made in (f16, base, file, unpacked):
        remove(made)
    print("\n| file | tokens/s | ratio | --fast | ratio | llama-perplexity | peak memory |\n|---|---|---|---|---|---|---|")
    print("\n".join(speeds))
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
