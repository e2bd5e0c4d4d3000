"""The same bytes for every number of threads, every instruction set and any ceiling for the buffers.

    same_bytes.py HALFBYTE SCRATCH [CHECKPOINT]
"""

import os
import sys
from pathlib import Path

from common import FIXTURES, Checks, command, digest, remove, run

GGUF = (
    "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k",
    "iq4_nl", "iq4_xs", "mxfp4", "nvfp4",
)  # fmt: skip
MLX = ("2bit-g32", "3bit-g32", "4bit-g64", "5bit-g64", "6bit-g64", "8bit-g128", "mxfp4", "mxfp8", "nvfp4")


def instruction_sets():
    """Those of halfbyte's that this processor has."""
    flags = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            flags = set(line.split(":")[1].split())
            break
    needs = {"avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}, "avx2": {"avx2", "fma", "f16c"}, "neon": {"asimd"}}
    return ["scalar"] + [isa for isa, features in needs.items() if features <= flags]


def one(checks, halfbyte, source, scratch, to, form):
    ways = [({}, ["--threads", n]) for n in ("1", "2", "5")] + [({}, ["--memory", "8MiB"])]
    ways += [({"HALFBYTE_ISA": isa}, []) for isa in instruction_sets()]
    out, sums = scratch / (f"{form}.gguf" if to == "gguf" else form), {}
    for environment, options in ways:
        remove(out)
        done = run(command(halfbyte, source, to, form, out, *options), env=os.environ | environment)
        name = " ".join([*environment.values(), *options])
        if done.returncode != 0:
            raise RuntimeError(f"{name}: {done.stderr}")
        sums[name] = digest(out)
    remove(out)
    first = next(iter(sums.values()))
    different = [name for name, found in sums.items() if found != first]
    label = f"{source.name} {to} {form}"
    checks.that(not different, f"{label}: the same bytes with {', '.join(sums)}" + (f"; different: {different}" if different else ""))


def main(halfbyte, scratch, *larger):
    checks, scratch = Checks(), Path(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    for source in [FIXTURES / "tiny-llama", FIXTURES / "tiny-deepseek", *map(Path, larger)]:
        for to, forms in (("gguf", GGUF), ("mlx", MLX)):
            for form in forms:
                checks.case(form, one, checks, halfbyte, source, scratch, to, form)
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
