"""MLX folders as their consumers see them: safetensors' reader, and mlx-lm running them.

    mlx_check.py HALFBYTE SCRATCH
"""

import json
import shutil
import sys
from pathlib import Path

import checkpoint
import mlx.core as mx
import numpy as np
from checks import FIXTURES, TEXT, Checks, quantize
from measure import divergence, relative_error
from mlx.utils import tree_flatten
from mlx_lm import generate
from mlx_model import MlxModel
from safetensors import safe_open
from tokenizers import Tokenizer

# Format -> the largest mean divergence (nats) from the unquantized model: two to five times what mlx_lm.convert's own folders
# show. A wrong layout, scale or order of weights gives more than 1.
FORMATS = {
    "8bit-g64": 0.0005, "8bit-g32": 0.0005, "8bit-g128": 0.0005, "mxfp8": 0.005, "6bit-g64": 0.002, "5bit-g64": 0.005,
    "4bit-g32": 0.03, "4bit-g64": 0.03, "4bit-g128": 0.05, "mxfp4": 0.03, "nvfp4": 0.03, "3bit-g32": 0.06, "3bit-g64": 0.1, "2bit-g32": 1.0,
}  # fmt: skip
ALIGNMENT = 64


def check_files(checks, label, folder):
    """safetensors reads every shard; the index names each tensor's file; tensors are aligned; config says what they are."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found, misplaced = {}, []
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, "numpy") as file:
            if (file.metadata() or {}).get("format") != "mlx":
                misplaced.append(f"{shard.name}: metadata {file.metadata()}")
            found.update({name: shard.name for name in file.keys()})
        raw = shard.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        for name, entry in json.loads(raw[8 : 8 + length]).items():
            if name != "__metadata__" and (8 + length + entry["data_offsets"][0]) % ALIGNMENT:
                misplaced.append(f"{shard.name}: {name} is not at a multiple of {ALIGNMENT}")
    checks.that(found == index["weight_map"], f"{label}: safetensors reads the {len(found)} tensors that the index names, each in its file")
    checks.that(not misplaced, f"{label}: format and alignment" + "".join(f"\n         {m}" for m in misplaced))
    config = json.loads((folder / "config.json").read_text())
    checks.that(
        "quantization" in config and config["quantization"] == config.get("quantization_config"),
        f"{label}: config.json says {({k: v for k, v in config.get('quantization', {}).items() if not isinstance(v, dict)})}",
    )


def check_weights(checks, label, ours, reference):
    """Each quantized module is at least as close to the checkpoint as mlx's own encoder makes it; all else is exact, or rounded
    once to bfloat16."""
    plain, wrong, ratios = dict(tree_flatten(reference.model.parameters())), [], []
    quantized = {path: module for path, module in ours.model.named_modules() if "scales" in module}
    for path, module in quantized.items():
        target = plain[path + ".weight"]
        how = dict(group_size=module.group_size, bits=module.bits, mode=module.mode)
        got = mx.dequantize(module.weight, module.scales, module.get("biases"), **how).astype(mx.float32)
        peer = mx.dequantize(*mx.quantize(target.astype(mx.bfloat16), **how), **how).astype(mx.float32)
        error, theirs = (relative_error(np.array(target), np.array(values)) for values in (got, peer))
        ratios.append(error / theirs)
        if error > theirs:
            wrong.append(f"{path}: error {error:.5f}, mlx's own encoder {theirs:.5f}")
    kept = [(name, values) for name, values in tree_flatten(ours.model.parameters()) if name.rpartition(".")[0] not in quantized]
    for name, values in kept:
        rounded = plain[name].astype(mx.bfloat16).astype(mx.float32)
        if not (mx.array_equal(values, plain[name]) or mx.array_equal(values, rounded)):
            wrong.append(f"{name} is not quantized and differs")
    checks.that(
        ratios and not wrong,
        f"{label}: {len(ratios)} quantized modules, error {np.mean(ratios):.3f} of mlx's own encoder's "
        f"(worst {max(ratios, default=0):.3f}), {len(kept)} tensors kept" + "".join(f"\n         {w}" for w in wrong),
    )


def check_model(checks, halfbyte, scratch, model):
    source = FIXTURES / model
    paths = json.loads((source / "expected.json").read_text())["greedy"]
    config, tensors = checkpoint.read(source)
    plain = scratch / f"{model}-float32"
    checkpoint.write_float32(plain, config, tensors, source)
    reference = MlxModel(plain)
    exact = [reference.greedy(p["prompt_ids"], len(p["continuation_ids"])) == p["continuation_ids"] for p in paths]
    checks.that(all(exact), f"{model} unquantized, the measure for the rest: mlx-lm continues {sum(exact)} of {len(exact)} prompts as transformers does")
    truth = [reference.log_probabilities(p["prompt_ids"] + p["continuation_ids"]) for p in paths]

    def one(form, ceiling):
        label = f"{model} {form}"
        folder = quantize(halfbyte, source, "mlx", form, scratch / f"{model}-{form}")
        check_files(checks, label, folder)
        ours = MlxModel(folder)
        check_weights(checks, label, ours, reference)
        here = [ours.log_probabilities(p["prompt_ids"] + p["continuation_ids"]) for p in paths]
        found = divergence(np.concatenate(truth), np.concatenate(here))
        checks.that(found <= ceiling, f"{label}: mlx-lm runs it, mean divergence {found:.6f} <= {ceiling} over {sum(map(len, here))} positions")
        if form == "8bit-g64":
            right = [ours.greedy(p["prompt_ids"], len(p["continuation_ids"])) == p["continuation_ids"] for p in paths]
            checks.that(all(right), f"{label}: mlx-lm continues {sum(right)} of {len(right)} prompts exactly as transformers does")
            ids = Tokenizer.from_file(str(source / "tokenizer.json")).encode(TEXT).ids
            checks.that(ours.tokenizer.encode(TEXT, add_special_tokens=False) == ids, f"{label}: the folder's tokenizer gives the {len(ids)} ids that the source's gives")
        text = generate(ours.model, ours.tokenizer, paths[0]["prompt"], max_tokens=8)
        checks.that(bool(text.strip()), f"{label}: mlx-lm generates {text!r}")
        shutil.rmtree(folder)

    for form, ceiling in FORMATS.items():
        checks.case(f"{model} {form}", one, form, ceiling)


def main(halfbyte, scratch):
    checks, scratch = Checks(), Path(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    for model in ("tiny-llama", "tiny-deepseek"):
        checks.case(model, check_model, checks, halfbyte, scratch, model)
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:3])
