"""GGUF files as their consumers see them: gguf-py's reader, and llama.cpp (by way of `xllamacpp`) running them.

    gguf_check.py HALFBYTE SCRATCH
"""

import json
import sys
from pathlib import Path

import checkpoint
import numpy as np
from checks import FIXTURES, TEXT, Checks, quantize, run
from gguf import GGUFReader
from gguf.quants import dequantize
from llama import Llama
from measure import divergence, relative_error
from order import problems
from tokenizers import Tokenizer

# Format -> the largest mean divergence (nats) from the F32 file's distributions: three to ten times what llama-quantize's own
# files show. A wrong layout, scale or order of weights gives more than 1.
FORMATS = {
    "f32": 1e-9, "f16": 1e-5, "bf16": 1e-5, "q8_0": 0.001, "q6_k": 0.004,
    "q5_k_m": 0.01, "q5_k_s": 0.01, "q5_0": 0.01, "q5_1": 0.01,
    "q4_k_m": 0.03, "q4_k_s": 0.03, "q4_0": 0.05, "q4_1": 0.05, "iq4_nl": 0.03, "iq4_xs": 0.03, "mxfp4": 0.1, "nvfp4": 0.05,
    "q3_k_l": 0.1, "q3_k_m": 0.1, "q3_k_s": 0.2, "q2_k": 0.5,
}  # fmt: skip

# Block type -> the largest relative RMS error of a matrix: what llama-quantize's own files of these two models show at worst
# (NVFP4, which it does not write: what four bits with a scale per 16 allow).
ERRORS = {
    "Q8_0": 0.0059, "Q6_K": 0.0186, "Q5_K": 0.038, "Q5_0": 0.0459, "Q5_1": 0.0397, "Q4_K": 0.0755, "Q4_0": 0.0926, "Q4_1": 0.0825,
    "IQ4_NL": 0.0795, "IQ4_XS": 0.0801, "MXFP4": 0.1186, "NVFP4": 0.1, "Q3_K": 0.1594, "Q2_K": 0.3082,
}  # fmt: skip

def expected_of(model):
    return json.loads((FIXTURES / model / "expected.json").read_text())


def distributions(llama, expected, vocabulary):
    """ln p after every second position of every greedy path: [positions, vocabulary]."""
    rows = []
    for path in expected["greedy"]:
        ids = path["prompt_ids"] + path["continuation_ids"]
        rows += [llama.distribution(ids[:end], vocabulary) for end in range(1, len(ids) + 1, 2)]
    return np.array(rows)


def stored(values, kind):
    """What a lossless type makes of float32 values."""
    if kind == "F16":
        return values.astype(np.float16).astype(np.float32)
    if kind == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
        return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)
    return values


def check_tensors(checks, label, path, expected):
    """Every tensor is there, under its name and shape; its values are the checkpoint's, as far as its type can say."""
    tensors = {t.name: t for t in GGUFReader(path).tensors}
    checks.that(tensors.keys() == expected.keys(), f"{label}: gguf-py reads the {len(expected)} tensors that should be there")
    wrong, worst, kinds = [], {}, {}
    for name, values in expected.items():
        if name not in tensors:
            continue
        kind = tensors[name].tensor_type.name
        kinds[kind] = kinds.get(kind, 0) + 1
        got = dequantize(tensors[name].data, tensors[name].tensor_type)
        if got.shape != values.shape:
            wrong.append(f"{name} has shape {got.shape}, not {values.shape}")
        elif kind in ("F32", "F16", "BF16"):
            if not np.array_equal(got, stored(values, kind)):
                wrong.append(f"{name} ({kind}) differs")
        else:
            error = relative_error(values, got)
            worst[kind] = max(worst.get(kind, 0.0), error)
            if not error <= ERRORS[kind]:
                wrong.append(f"{name} ({kind}) is off by {error:.4f}, allowed {ERRORS[kind]}")
    told = ", ".join(f"{n} {k}" + (f" (worst error {worst[k]:.4f})" if k in worst else " (exact)") for k, n in sorted(kinds.items()))
    checks.that(not wrong, f"{label}: values as gguf-py dequantizes them: {told}" + "".join(f"\n         {w}" for w in wrong))


def check_model(checks, halfbyte, scratch, model):
    expected = expected_of(model)
    config, tensors = checkpoint.read(FIXTURES / model)
    tensors = checkpoint.gguf_tensors(config, tensors)
    vocabulary = config["vocab_size"]
    reference = []

    def one(form, ceiling):
        label = f"{model} {form}"
        path = quantize(halfbyte, FIXTURES / model, "gguf", form, scratch / f"{model}-{form}.gguf")
        check_tensors(checks, label, path, tensors)
        llama = Llama(path)
        if form in ("f32", "f16"):
            right = [llama.greedy(p["prompt_ids"], len(p["continuation_ids"])) == p["continuation_ids"] for p in expected["greedy"]]
            checks.that(all(right), f"{label}: llama.cpp continues {sum(right)} of {len(right)} prompts exactly as transformers does")
        if form == "f32":
            ids = Tokenizer.from_file(str(FIXTURES / model / "tokenizer.json")).encode(TEXT).ids
            checks.that(llama.tokenize(TEXT) == ids, f"{label}: llama.cpp's tokenizer gives the {len(ids)} ids that tokenizers gives")
        here = distributions(llama, expected, vocabulary)
        if not reference:
            reference.append(here)
        found = divergence(reference[0], here)
        checks.that(found <= ceiling, f"{label}: llama.cpp runs it, mean divergence from F32 {found:.6f} <= {ceiling} over {len(here)} positions")
        path.unlink()

    for form, ceiling in FORMATS.items():
        checks.case(f"{model} {form}", one, form, ceiling)


def check_split(checks, halfbyte, scratch):
    """A split model loads from its first file and holds what the single file holds."""
    source = FIXTURES / "tiny-deepseek"
    single = quantize(halfbyte, source, "gguf", "q8_0", scratch / "single.gguf")
    quantize(halfbyte, source, "gguf", "q8_0", scratch / "split.gguf", "--shard-size", "4MB")
    parts = sorted(scratch.glob("split-*-of-*.gguf"))
    checks.that(len(parts) > 2, f"tiny-deepseek q8_0 in shards of 4 MB: {len(parts)} files")
    one = {t.name: t.data.tobytes() for t in GGUFReader(single).tensors}
    many = {t.name: t.data.tobytes() for part in parts for t in GGUFReader(part).tensors}
    checks.that(one == many, "the shards hold the same tensors and bytes as the single file")
    prompt = expected_of("tiny-deepseek")["greedy"][0]["prompt_ids"]
    checks.that(Llama(parts[0]).greedy(prompt, 8) == Llama(single).greedy(prompt, 8), "llama.cpp runs the shards as it runs the single file")


def check_alignment(checks, halfbyte, scratch):
    """Tensors at multiples of a page, in one file and in shards, load as those at multiples of 32 bytes do and compute the same."""
    for model in ("tiny-llama", "tiny-deepseek"):
        prompt, vocabulary = expected_of(model)["greedy"][0]["prompt_ids"], json.loads((FIXTURES / model / "config.json").read_text())["vocab_size"]
        plain = quantize(halfbyte, FIXTURES / model, "gguf", "q4_k_m", scratch / f"{model}-plain.gguf")
        bytes_of = lambda paths: {t.name: t.data.tobytes() for path in paths for t in GGUFReader(path).tensors}
        one, reference = bytes_of([plain]), Llama(plain).distribution(prompt, vocabulary)
        for align in (4096, 16384):
            for split in ([], ["--shard-size", "1MB"]):
                stem = f"{model}-{align}{'-split' if split else ''}"
                quantize(halfbyte, FIXTURES / model, "gguf", "q4_k_m", scratch / f"{stem}.gguf", "--align", align, *split)
                paths = sorted(scratch.glob(f"{stem}-*-of-*.gguf")) if split else [scratch / f"{stem}.gguf"]
                stray = [t.name for path in paths for t in GGUFReader(path).tensors if t.data_offset % align]
                checks.that(not stray and one == bytes_of(paths), f"{model} aligned to {align} in {len(paths)} files: every tensor, where it should be")
                same = np.array_equal(Llama(paths[0]).distribution(prompt, vocabulary), reference)
                checks.that(same, f"{model} aligned to {align} in {len(paths)} files: llama.cpp computes the same probabilities to the last bit")


def check_gguf_source(checks, halfbyte, scratch):
    """A lossless GGUF as the source gives the tensors that the checkpoint gives; a quantized one is taken with a warning."""
    source = FIXTURES / "tiny-llama"
    bf16 = quantize(halfbyte, source, "gguf", "bf16", scratch / "bf16.gguf")
    direct = quantize(halfbyte, source, "gguf", "q4_k_m", scratch / "direct.gguf")
    detour = quantize(halfbyte, bf16, "gguf", "q4_k_m", scratch / "detour.gguf")
    one, other = ({t.name: (t.tensor_type, t.data.tobytes()) for t in GGUFReader(path).tensors} for path in (direct, detour))
    checks.that(one == other, "q4_k_m from the BF16 GGUF holds the tensors of q4_k_m from the checkpoint")
    wrong = [problem for path in (direct, detour) for problem in problems([t.name for t in GGUFReader(path).tensors])]
    checks.that(not wrong, f"both in order of execution {wrong or ''}")
    prompt = expected_of("tiny-llama")["greedy"][0]["prompt_ids"]
    checks.that(Llama(direct).greedy(prompt, 8) == Llama(detour).greedy(prompt, 8), "llama.cpp runs both alike")
    again = run(halfbyte, "quantize", direct, "--format", "q4_0", "--out", scratch / "again.gguf")
    checks.that("warning" in again.stderr, f"quantizing a quantized file warns: {again.stderr.strip()}")


def check_inspect(checks, halfbyte, scratch):
    """`halfbyte inspect` says of a file what gguf-py finds in it."""
    path = quantize(halfbyte, FIXTURES / "tiny-deepseek", "gguf", "q4_k_m", scratch / "inspected.gguf")
    told = json.loads(run(halfbyte, "inspect", path, "--json").stdout)
    ours = {t["name"]: (t["format"].upper(), t["bytes"], t["shape"]) for t in told["tensors"]}
    theirs = {t.name: (t.tensor_type.name, t.n_bytes, t.shape.tolist()[::-1]) for t in GGUFReader(path).tensors}
    checks.that(ours == theirs, f"halfbyte inspect tells the types, sizes and shapes of {len(theirs)} tensors as gguf-py does")


def main(halfbyte, scratch):
    checks, scratch = Checks(), Path(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    for model in ("tiny-llama", "tiny-deepseek"):
        check_model(checks, halfbyte, scratch, model)
    checks.case("split", check_split, checks, halfbyte, scratch)
    checks.case("alignment", check_alignment, checks, halfbyte, scratch)
    checks.case("GGUF as the source", check_gguf_source, checks, halfbyte, scratch)
    checks.case("inspect", check_inspect, checks, halfbyte, scratch)
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:3])
