"""The families' oracles, converted: llama.cpp and mlx-lm compute from our files what transformers computes from the checkpoint.

    families.py HALFBYTE ORACLES SCRATCH [FAMILY...]

ORACLES holds a folder per family: a small random checkpoint and expected.safetensors (`input_ids` [n, length] and the float32
`logits` [n, length, vocabulary] of transformers). The checkpoints have no tokenizer: they get a made-up one.
"""

import gc
import json
import shutil
import sys
from pathlib import Path

import checkpoint
import numpy as np
from checks import Checks, quantize
from gguf import GGUFReader
from llama import Llama
from measure import divergence
from mlx_model import MlxModel
from order import problems
from safetensors.numpy import load_file, save_file

# Formats without loss (the checkpoints are in bfloat16) -> the largest difference of any ln p, relative to the largest |logit|,
# and of how many positions. With F32 weights, and in mlx-lm, all is computed in single precision. Where weights are in F16
# llama.cpp rounds activations to it too; a router near a tie may then choose another expert, which changes all that follows.
EXACT = {"gguf": {"f32": (1e-5, 1.0), "f16": (2e-3, 0.5)}, "mlx": {"bf16": (1e-5, 1.0)}}

# Formats with loss -> the largest mean divergence (nats) from transformers' distributions: twice what the families show, of
# which those with experts show most, for a router that tips over changes all of a position.
LOSSY = {"gguf": {"q8_0": 0.015}, "mlx": {"4bit-g64": 0.25, "4bit-g32": 0.25}}

# Routers in every layer multiply that, and delta networks carry it on from token to token.
FRAIL = {"qwen3_5_moe": 3.0}

# What consumers are known to compute otherwise, in their own ways, and how far that takes them: llama.cpp looks GELU up in a table of
# F16, norms GLM 5's latents with the ε of its other norms, and both bound YaRN's ramp by whole dimensions where gpt-oss doesn't. A
# state that is carried on from token to token adds up roundings.
OTHERWISE = {
    "gemma2": {"gguf": 3e-4},
    "gemma3": {"gguf": 3e-4},
    "gemma4": {"gguf": 3e-4},
    "glm_moe_dsa": {"gguf": 5e-5},
    "gpt_oss": {"gguf": 3e-3, "mlx": 3e-3},
    "qwen3_5": {"mlx": 2e-5},
    "qwen3_5_moe": {"mlx": 2e-5},
}

# MLX folders have 1 + the stored gain of these families' norms, for which BF16 has no room: mlx-lm's own converter rounds it as we
# do. Of a checkpoint that calls itself F32 all is exact.
SINGLE = {"qwen3_5", "qwen3_5_moe"}

# Nor do they all apply the window of Mistral's first version and of Gemma 2: alike are the positions that see all before them.
SEES_ALL = {("mistral", "gguf"), ("mistral", "mlx"), ("gemma2", "mlx")}

# Logits that are so far apart that single precision can't tell any probability but the first from 0 are divided by this, in the
# gains of the final norm. The number is what the graph adds to the stored gain.
FLATTENED = {"gemma3": 1.0, "gemma4": 0.0}
FLATTER = 32.0

# The logits of this oracle were computed before the router's biases were rounded to bfloat16. In one position two experts come
# so close that the rounding exchanges them, with all positions after: their biases are moved by less than it.
MENDED = {"minimax_m2": ("model.layers.0.block_sparse_moe.e_score_correction_bias", {1: -8e-5, 2: 8e-5})}

# llama.cpp takes logarithms of single-precision probabilities: below this they say nothing.
FLOOR = -80.0


# A token that is a whole character in the made-up vocabulary.
LETTER = 70


def letters():
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def write_tokenizer(folder, size):
    """A byte-level BPE of `size` tokens: one special token, the bytes, and pairs of them."""
    special = "<|endoftext|>"
    bytes_ = [letter for _, letter in sorted(letters().items())]
    pairs = [[first, second] for first in bytes_[97:] for second in bytes_[97:123]][: size - 1 - len(bytes_)]
    tokens = [special, *bytes_, *("".join(pair) for pair in pairs)]
    assert len(set(tokens)) == size, f"a vocabulary of {size} is out of this tokenizer's range"
    added = {"id": 0, "content": special, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": {token: i for i, token in enumerate(tokens)}, "merges": pairs}  # fmt: skip
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [added], "normalizer": None,
                 "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level, "model": model}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": special, "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokens[LETTER].isascii()


def mend(folder, name, changes):
    """Stores the checkpoint in float32 with some elements of a vector changed."""
    _, tensors = checkpoint.read(folder)
    for element, change in changes.items():
        tensors[name][element] += change
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, folder / "model.safetensors")


def flatten(folder, added):
    """Stores the checkpoint in float32 with the gains of its final norm divided."""
    _, tensors = checkpoint.read(folder)
    tensors["model.norm.weight"] = (tensors["model.norm.weight"] + added) / FLATTER - added
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))


def through_llama(path, sequences, vocabulary):
    """ln p of every token after each prefix: [sequences, positions, vocabulary]."""
    llama = Llama(path, exact=True)
    return np.array([[llama.distribution(ids[: end + 1], vocabulary, LETTER) for end in range(len(ids))] for ids in sequences])


def through_mlx(folder, sequences, _):
    model = MlxModel(folder)
    return np.array([model.log_probabilities(ids) for ids in sequences])


RUN = {"gguf": ("llama.cpp", through_llama), "mlx": ("mlx-lm", through_mlx)}


def check_family(checks, halfbyte, oracle, scratch):
    family = oracle.name
    source = scratch / family
    shutil.copytree(oracle, source, ignore=shutil.ignore_patterns("expected.safetensors"))
    if family in MENDED:
        mend(source, *MENDED[family])
    expected = load_file(oracle / "expected.safetensors")
    sequences, logits = expected["input_ids"].tolist(), expected["logits"].astype(np.float64)
    if family in FLATTENED:
        flatten(source, FLATTENED[family])
        logits /= FLATTER
    config = json.loads((source / "config.json").read_text())
    if family in SINGLE:
        (source / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    window = config.get("sliding_window")
    vocabulary, largest = logits.shape[-1], np.abs(logits).max()
    truth = logits - np.log(np.exp(logits - largest).sum(-1, keepdims=True)) - largest
    write_tokenizer(source, vocabulary)

    def one(to, form):
        consumer, run = RUN[to]
        label = f"{family} {to} {form}: {consumer}"
        out = quantize(halfbyte, source, to, form, scratch / f"{family}-{form}{'.gguf' if to == 'gguf' else ''}")
        if form == "f32":
            tensors = sorted(GGUFReader(out).tensors, key=lambda tensor: tensor.data_offset)
            wrong = problems([tensor.name for tensor in tensors])
            checks.that(not wrong, f"{family}: {len(tensors)} tensors in order of execution {wrong or ''}")
        length = window if (family, to) in SEES_ALL else None
        here, there = run(out, [ids[:length] for ids in sequences], vocabulary), truth[:, :length]
        errors = np.abs(np.maximum(here, FLOOR) - np.maximum(there, FLOOR)).max(-1) / largest
        lost = divergence(there, here)
        same = here.argmax(-1) == there.argmax(-1)
        figures = f"max |Δ ln p| / max |logit| {errors.max():.1e} (median {np.median(errors):.1e}), mean divergence {lost:.2e}, same top token {same.sum()} of {same.size}"
        if form in EXACT[to]:
            allowed, share = EXACT[to][form]
            allowed = max(allowed, OTHERWISE.get(family, {}).get(to, 0.0))
            checks.that((errors <= allowed).mean() >= share, f"{label} {figures}; allowed {allowed:.0e} in {share:.0%}")
        else:
            allowed = LOSSY[to][form] * FRAIL.get(family, 1.0)
            checks.that(lost <= allowed, f"{label} {figures}; allowed divergence {allowed}")
        shutil.rmtree(out) if out.is_dir() else out.unlink()

    for to in RUN:
        for form in [*EXACT[to], *LOSSY[to]]:
            checks.case(f"{family} {to} {form}", one, to, form)
            gc.collect()


def main(halfbyte, oracles, scratch, *families):
    oracles, scratch = Path(oracles), Path(scratch)
    found = sorted(path.parent.name for path in oracles.glob("*/expected.safetensors"))
    if not found:
        sys.exit(f"{oracles} holds no oracles: FAMILY/expected.safetensors beside each FAMILY/model.safetensors")
    checks = Checks()
    for family in families or found:
        checks.case(family, check_family, checks, halfbyte, oracles / family, scratch)
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
