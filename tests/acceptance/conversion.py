"""From a BF16 checkpoint to a file that runs: the whole of the work, against llama.cpp's and MLX's own commands.

    conversion.py HALFBYTE LLAMA LLAMA_BIN PEER_PYTHON SCRATCH CHECKPOINT

- Q4_K_M: llama.cpp's way is two steps, convert_hf_to_gguf.py and llama-quantize, with a BF16 file in between; both count.
- MLX 4-bit, groups of 64: `mlx_lm.convert -q` on the CPU.

All have the same cores, run in turn, twice, and the faster time counts; the source is in the page cache. Memory is each process's largest
resident set, bytes are those of all files written. Prints the table of docs/benchmarks.md. peers.sh says what the arguments are.
"""

import os
import sys
from pathlib import Path

from common import Checks, command, measure, remove, size_of

THREADS = str(os.cpu_count())
# How many times as fast as the peer's way is wanted.
GOALS = {"gguf": 8, "mlx": 4}
# mlx_lm.convert takes the best device there is; the comparison is of the same cores.
MLX_CONVERT = "import mlx.core as mx; mx.set_default_device(mx.cpu); from mlx_lm.convert import main; main()"


def main(halfbyte, llama, llama_bin, python, scratch, checkpoint):
    checks, scratch = Checks(), Path(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    between = scratch / "bf16.gguf"
    offline = {"OMP_NUM_THREADS": THREADS, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

    def llama_cpp(theirs):
        remove(between)
        convert = [python, Path(llama) / "convert_hf_to_gguf.py", checkpoint, "--outtype", "bf16", "--outfile", between]
        first = measure(convert, **offline)
        second = measure([Path(llama_bin) / "llama-quantize", between, theirs, "Q4_K_M", THREADS])
        return [("convert_hf_to_gguf.py", first, size_of(between)), ("llama-quantize", second, size_of(theirs))]

    def mlx(theirs):
        cost = measure([python, "-c", MLX_CONVERT, "--hf-path", checkpoint, "--mlx-path", theirs, "-q"], **offline)
        return [("mlx_lm.convert", cost, size_of(theirs))]

    rows = [
        "| work | command | s | CPU s | peak memory MB | MB written | halfbyte is faster |",
        "|---|---|---|---|---|---|---|",
    ]

    def one(work, to, form, peer):
        suffix = ".gguf" if to == "gguf" else ""
        ours, theirs = (scratch / (name + suffix) for name in ("halfbyte", "peer"))
        ways = []
        for _ in range(2):
            for out in (ours, theirs):
                remove(out)
            line = command(halfbyte, checkpoint, to, form, ours, "--threads", THREADS)
            ways.append(([("halfbyte", measure(line), size_of(ours))], peer(theirs)))
        for out in (ours, theirs, between):
            remove(out)

        def total(steps):
            cost = steps[0][1]
            for _, step, _ in steps[1:]:
                cost = cost.then(step)
            return cost

        we, they = (min((pair[side] for pair in ways), key=lambda steps: total(steps).wall) for side in (0, 1))
        (our_cost, their_cost), ratio = (total(we), total(they)), total(they).wall / total(we).wall
        checks.that(ratio >= GOALS[to], f"{work}: {ratio:.1f} times as fast as {they[0][0]}, at least {GOALS[to]} are wanted")
        checks.that(our_cost.peak <= their_cost.peak, f"{work}: peak memory {our_cost.peak / 1e6:.0f} MB <= {their_cost.peak / 1e6:.0f} MB")
        checks.that(all(size > 0 for *_, size in we + they), f"{work}: every command wrote something")
        for name, cost, size in we + they:
            rows.append(f"| {work} | `{name}` | {cost.wall:.2f} | {cost.cpu:.1f} | {cost.peak / 1e6:.0f} | {size / 1e6:.0f} | |")
        if len(they) > 1:
            size = sum(size for *_, size in they)
            rows.append(f"| {work} | both | {their_cost.wall:.2f} | {their_cost.cpu:.1f} | {their_cost.peak / 1e6:.0f} | {size / 1e6:.0f} | |")
        rows[-1] = rows[-1].removesuffix(" |") + f" {ratio:.1f} × |"

    checks.case("Q4_K_M", one, "BF16 → Q4_K_M", "gguf", "q4_k_m", llama_cpp)
    checks.case("MLX", one, "BF16 → MLX 4-bit g64", "mlx", "4bit-g64", mlx)
    print("\n", *rows, sep="\n", end="\n\n")
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:7])
