"""The bytes of the cache that halfbyte computes from headers, against what llama.cpp and mlx-lm allocate; llama.cpp's buffers too.

    budget.py HALFBYTE EXAMPLES ORACLES SCRATCH [MODEL...]

EXAMPLES is the folder of the built examples `budget` and `headers`; families.py says what ORACLES holds. Of the families' small
checkpoints llama.cpp and mlx-lm allocate everything. Well-known models are given to llama.cpp at their real size with headers alone,
and it only tells what it would allocate (`no_alloc`).
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from checks import Checks, quantize
from families import write_tokenizer

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "acceptance"))

import header_checkpoints  # noqa: E402
import r1_checkpoint  # noqa: E402

# (tokens of each sequence, sequences, type): contexts that are and aren't multiples of what cells are padded to.
SMALL = [(256, 1, "f16"), (5000, 1, "f16"), (4096, 1, "q8_0"), (5000, 1, "q8_0"), (300, 3, "f16"), (5000, 2, "q4_0")]
LARGE = [(32768, 1, "f16"), (131072, 1, "f16"), (131072, 1, "q8_0"), (40000, 4, "f16")]

# What mlx-lm reads in steps of 2048 tokens: one step, and two whole ones.
MLX = [(300, "f16"), (4096, "f16"), (4096, "q8_0"), (4096, "q4_0")]

NUMBER = r" *([\d.]+) MiB"
CACHE = re.compile(rf"llama_kv_cache: size ={NUMBER} \( *(\d+) cells, +(\d+) layers, +\d+/(\d+) seqs\)")
STATE = re.compile(rf"llama_memory_recurrent: size ={NUMBER} \( *(\d+) cells")
ALLOCATED = re.compile(rf"(?:KV|RS) buffer size ={NUMBER}")
OUTPUT = re.compile(rf"output buffer size ={NUMBER}")
COMPUTE = re.compile(rf"compute buffer size ={NUMBER}")

# Of each number that llama.cpp prints, in MiB.
ROUNDING = 0.0051

# Loads a model in llama.cpp's server, which goes on loading behind our back: whoever reads the log ends the process.
LOAD = """
import sys, time, xllamacpp
path, context, parallel, kind, alloc = sys.argv[1:]
p = xllamacpp.CommonParams()
p.model.path, p.n_ctx, p.n_parallel, p.n_gpu_layers = path, int(context) * int(parallel), int(parallel), 0
p.verbosity, p.warmup, p.kv_unified, p.fit_params = 4, False, False, False
p.cache_type_k = p.cache_type_v = getattr(xllamacpp.ggml_type, "GGML_TYPE_" + kind.upper())
if alloc == "no":
    p.no_alloc, p.load_mode = True, xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
server = xllamacpp.Server(p)
time.sleep(120)
"""


def llama_cpp(path, context, parallel, kind, alloc):
    """What llama.cpp says while it loads: numbers in MiB, caches as (MiB, cells, layers)."""
    command = [sys.executable, "-c", LOAD, path, context, parallel, kind, "yes" if alloc else "no"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if COMPUTE.search(line):
                break
    finally:
        process.kill()
        process.wait()
    text = "".join(lines)
    found = {
        "caches": [(float(size), int(cells), int(layers)) for size, cells, layers, _ in CACHE.findall(text)],
        "states": [float(size) for size, _ in STATE.findall(text)],
        "allocated": [float(size) for size in ALLOCATED.findall(text)],
        "output": [float(size) for size in OUTPUT.findall(text)],
        "compute": [float(size) for size in COMPUTE.findall(text)],
    }
    missing = [what for what in ("caches", "allocated", "output", "compute") if not found[what]]
    if missing:
        raise RuntimeError(f"llama.cpp did not load it or says {missing} in other words now: {text[-1500:]}")
    return found


def ours(examples, engine, path, context, parallel, kind):
    command = [examples / "budget", engine, path, context, parallel, kind]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"budget: {done.stderr.strip()}")
    return json.loads(done.stdout)


def check_llama_cpp(checks, examples, label, path, context, parallel, kind, alloc):
    label = f"{label}, {parallel} x {context} tokens, {kind}"
    there, here = llama_cpp(path, context, parallel, kind, alloc), ours(examples, "llama.cpp", path, context, parallel, kind)
    mib = sum(layer["bytes"] for layer in here["cache"]) / 2**20
    sizes = [size for size, *_ in there["caches"]] + there["states"]
    checks.that(abs(mib - sum(sizes)) <= ROUNDING * len(sizes), f"{label}: cache of {mib:.3f} MiB, llama.cpp's {' + '.join(map(str, sizes))}")
    if alloc:
        total = sum(there["allocated"])
        checks.that(abs(mib - total) <= ROUNDING * len(sizes), f"{label}: llama.cpp allocates {total:.2f} MiB for it")
    # A layer with an indexer has two caches of as many cells.
    cells = sorted(layer["cells"] for layer in here["cache"] for _ in range(1 + ("indexer" in layer["kind"])) if layer["cells"])
    said = sorted(cells for _, cells, layers in there["caches"] for _ in range(layers))
    checks.that(cells == said, f"{label}: {len(cells)} caches of {sorted(set(cells))} cells, llama.cpp's {len(said)} of {sorted(set(said))}")
    for buffer in here["buffers"]:
        low, high = buffer["low"] / 2**20, buffer["high"] / 2**20
        size = sum(there[buffer["name"]])
        checks.that(low - ROUNDING <= size <= high + ROUNDING, f"{label}: {buffer['name']} buffer {low:.2f} to {high:.2f} MiB, llama.cpp's {size:.2f}")


def check_mlx(checks, examples, label, folder, context, kind):
    import mlx.core as mx

    # MLX's product of gathered experts is built for float32 alone on the CPU; what it is computed in does not show in the cache.
    if not hasattr(mx, "narrow_gather_mm"):
        mx.narrow_gather_mm = mx.gather_mm
        wide = lambda array: array.astype(mx.float32)
        mx.gather_mm = lambda a, b, **more: mx.narrow_gather_mm(wide(a), wide(b), **more).astype(a.dtype)
    from mlx_lm.generate import maybe_quantize_kv_cache
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    label = f"{label}, {context} tokens, {kind}, mlx-lm"
    model, _ = load_model(folder)
    cache = make_prompt_cache(model)

    def read():
        for begin in range(0, context, 2048):
            model(mx.arange(min(2048, context - begin))[None] % 500, cache=cache)
            bits = {"f16": None, "q8_0": 8, "q4_0": 4}[kind]
            maybe_quantize_kv_cache(cache, 0, 64, bits)
            mx.eval([c.state for c in cache])

    try:
        here = ours(examples, "mlx", folder, context, 1, kind)
    except RuntimeError as error:
        assert "choose f16" in str(error), error
        try:
            read()
        except Exception as theirs:  # noqa: BLE001: whatever it is, it can't run
            checks.that(True, f"{label}: refused ({error}), as by mlx-lm ({type(theirs).__name__}: {theirs})")
        else:
            checks.that(False, f"{label}: refused ({error}), but mlx-lm runs it")
        return
    read()
    found, said = sum(c.nbytes for c in cache), sum(layer["bytes"] for layer in here["cache"])
    checks.that(found == said, f"{label}: cache of {said} bytes, mlx-lm's {found}")


def check_family(checks, halfbyte, examples, oracle, scratch):
    source = scratch / oracle.name
    shutil.copytree(oracle, source, ignore=shutil.ignore_patterns("expected.safetensors"))
    config = json.loads((source / "config.json").read_text())
    write_tokenizer(source, config["vocab_size"])
    path = scratch / f"{oracle.name}.gguf"
    subprocess.run([examples / "headers", source, "f16", path], check=True)
    for context, parallel, kind in SMALL:
        checks.case(oracle.name, check_llama_cpp, checks, examples, oracle.name, path, context, parallel, kind, True)
    folder = scratch / f"{oracle.name}-mlx"
    quantize(halfbyte, source, "mlx", "bf16", folder)
    for context, kind in MLX:
        checks.case(oracle.name, check_mlx, checks, examples, oracle.name, folder, context, kind)


def check_known(checks, examples, name, make, scratch):
    source, path = scratch / name, scratch / f"{name}.gguf"
    make(source)
    subprocess.run([examples / "headers", source, "q4_k_m", path], check=True)
    for context, parallel, kind in LARGE:
        checks.case(name, check_llama_cpp, checks, examples, name, path, context, parallel, kind, False)
    path.unlink()
    shutil.rmtree(source)


def main(halfbyte, examples, oracles, scratch, *only):
    examples, oracles, scratch = Path(examples), Path(oracles), Path(scratch)
    checks = Checks()
    known = {name: lambda out, name=name: header_checkpoints.make(name, out) for name in header_checkpoints.CONFIGS}
    known["deepseek-r1"] = lambda out: r1_checkpoint.main("whole", out)
    families = sorted(path.parent.name for path in oracles.glob("*/expected.safetensors"))
    for name in only or [*known, *families]:
        if name in known:
            checks.case(name, check_known, checks, examples, name, known[name], scratch)
        else:
            checks.case(name, check_family, checks, halfbyte, examples, oracles / name, scratch)
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
