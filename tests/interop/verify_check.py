"""halfbyte verify against the engines that run the files: the same distributions and the same perplexity from the same file.

    verify_check.py HALFBYTE SCRATCH
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from checks import FIXTURES, TEXT, Checks, quantize, run
from gguf import GGUFReader
from gguf.quants import dequantize
from llama import Llama
from measure import divergence, log_softmax
from mlx_model import MlxModel
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

# Where both compute in single precision only the order of sums differs: the largest mean divergence (nats) and relative difference
# of perplexities, three times what is found. Let a file's RoPE base be off by a thousandth, and the divergence is 9e-9 or more; let
# the epsilon of its norms be 2e-6 instead of 1e-6, and it is 5e-10.
EXACT, EXACT_PERPLEXITY = 1e-11, 1e-6

# llama.cpp rounds activations before it multiplies: to F16 where weights are, to 8 bits where they are quantized. What that costs
# is up to three times what is found: in nats, or, where weights have 4 bits, as a share of what those cost.
ROUNDED = {"f16": 2e-7, "q8_0": 3e-4}
ROUNDED_SHARE = {"q4_k_m": 0.25, "iq4_xs": 0.25}

# Formats of MLX whose weights mlx-lm multiplies as they are. Affine ones it does not round to the type of their scales, as
# `mx.dequantize` and verify do, unless they are unpacked before; mlx-lm can't unpack DeepSeek's per-head matrices.
MLX = {"tiny-llama": ("bf16", "mxfp4", "nvfp4", "4bit-g64", "8bit-g32"), "tiny-deepseek": ("bf16", "mxfp4", "nvfp4")}

# How many tokens of the text: llama.cpp is asked for one distribution at a time.
LENGTH = 48


def verify(halfbyte, model, ids, scratch):
    """(ln p of every token after each of `ids`: float64 [len(ids), vocabulary], perplexity of all but the first)"""
    tokens, logits = scratch / "ids.safetensors", scratch / "logits.safetensors"
    save_file({"input_ids": np.array([ids])}, tokens)
    told = json.loads(run(halfbyte, "verify", model, "--tokens", tokens, "--logits", logits, "--json").stdout)
    return log_softmax(load_file(logits)["logits"][0]), told["perplexity"]


def perplexity(found, following):
    """Of the tokens that follow, by ln p before each of them: [positions, vocabulary]; positions that nothing follows don't count."""
    return float(np.exp(-found[np.arange(len(following)), following].mean()))


def through_llama(path, ids, vocabulary, chosen, threads=1):
    """ln p of every token after each of `ids`; llama.cpp's own are of single-precision probabilities, whose sum is a little off."""
    llama = Llama(path, threads, exact=True)
    return log_softmax(np.array([llama.distribution(ids[: end + 1], vocabulary, chosen) for end in range(len(ids))]))


def widened(path, like, out):
    """The file at `path` with its weights in F32, as gguf-py dequantizes them: what llama.cpp computes without rounding
    activations. `like` is an F32 file of the same model."""
    shutil.copy(like, out)
    tensors = {t.name: t for t in GGUFReader(path).tensors}
    for tensor in GGUFReader(out, "r+").tensors:
        given = tensors[tensor.name]
        tensor.data[:] = dequantize(given.data, given.tensor_type).reshape(tensor.data.shape)
    return out


def check_exact(checks, label, engine, theirs, ours, ids):
    """`theirs`, ln p in single precision, is `ours`: (ln p, perplexity)."""
    found, off = divergence(theirs, ours[0]), abs(ours[1] / perplexity(theirs, ids[1:]) - 1)
    checks.that(found <= EXACT, f"{label}: verify computes what {engine} computes, mean divergence {found:.1e} <= {EXACT:.0e} over {len(ids)} positions")
    checks.that(off <= EXACT_PERPLEXITY, f"{label}: perplexity {ours[1]:.5f} as {engine}'s, but for {off:.1e} <= {EXACT_PERPLEXITY:.0e}")


def check_text(checks, halfbyte, scratch, label, path):
    """A text gives the logits of the ids that llama.cpp makes of it; as in llama-perplexity, it holds no special tokens."""
    ids = Llama(path).tokenize(TEXT, special=False)
    file, logits = scratch / "text.txt", scratch / "text.safetensors"
    file.write_bytes(TEXT.encode())
    run(halfbyte, "verify", path, "--text", file, "--context", len(ids), "--logits", logits)
    same = np.array_equal(log_softmax(load_file(logits)["logits"][0]), verify(halfbyte, path, ids, scratch)[0])
    checks.that(same, f"{label}: verify takes a text for the {len(ids)} ids that llama.cpp's tokenizer gives")


def check_gguf(checks, halfbyte, scratch, model):
    source = FIXTURES / model
    words = Tokenizer.from_file(str(source / "tokenizer.json"))
    (letter,) = words.encode("a").ids
    ids, vocabulary = words.encode(TEXT).ids[:LENGTH], words.get_vocab_size()
    plain = quantize(halfbyte, source, "gguf", "f32", scratch / f"{model}-f32.gguf")
    unquantized = verify(halfbyte, plain, ids, scratch)
    check_exact(checks, f"{model} f32", "llama.cpp", through_llama(plain, ids, vocabulary, letter), unquantized, ids)
    checks.case(f"{model} text", check_text, checks, halfbyte, scratch, model, plain)

    def one(form):
        label = f"{model} {form}"
        path = quantize(halfbyte, source, "gguf", form, scratch / f"{model}-{form}.gguf")
        ours = verify(halfbyte, path, ids, scratch)
        wide = widened(path, plain, scratch / "widened.gguf")
        check_exact(checks, f"{label}, weights by gguf-py", "llama.cpp", through_llama(wide, ids, vocabulary, letter), ours, ids)
        theirs = through_llama(path, ids, vocabulary, letter)
        found, own = divergence(theirs, ours[0]), divergence(unquantized[0], ours[0])
        ceiling = ROUNDED.get(form) or ROUNDED_SHARE[form] * own
        checks.that(
            found <= ceiling,
            f"{label}: from llama.cpp with its rounded activations mean divergence {found:.1e} <= {ceiling:.1e} (the format's own {own:.1e}), "
            f"perplexity {ours[1]:.3f} and {perplexity(theirs, ids[1:]):.3f}",
        )
        path.unlink()

    for form in [*ROUNDED, *ROUNDED_SHARE]:
        checks.case(f"{model} {form}", one, form)


def check_mlx(checks, halfbyte, scratch, model, form):
    source = FIXTURES / model
    ids = Tokenizer.from_file(str(source / "tokenizer.json")).encode(TEXT).ids
    folder = quantize(halfbyte, source, "mlx", form, scratch / f"{model}-{form}")
    theirs = MlxModel(folder, unpacked="bit-" in form).log_probabilities(ids)
    check_exact(checks, f"{model} MLX {form}", "mlx-lm", theirs, verify(halfbyte, folder, ids, scratch), ids)


def main(halfbyte, scratch):
    checks, scratch = Checks(), Path(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    for model in ("tiny-llama", "tiny-deepseek"):
        checks.case(model, check_gguf, checks, halfbyte, scratch, model)
        for form in MLX[model]:
            checks.case(f"{model} MLX {form}", check_mlx, checks, halfbyte, scratch, model, form)
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:3])
