"""Folders of compressed-tensors in transformers: every key finds its place, and the logits are those of the weights that we wrote.

    compressed_check.py HALFBYTE SCRATCH CHECKPOINT...

Each checkpoint (a folder) is quantized in each of FORMATS. transformers loads the folder, which must have no missing and no unexpected
key, and computes logits. The twin is the same model with the weights that the few lines of NumPy below decode from the files. Both are
loaded in single precision, where compressed-tensors multiplies codes with widened scales and rounds nothing, and in the checkpoint's
BF16, in which it rounds every product: then every weight of the two must be the same number.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()

FORMATS = ["w4a16-g32", "w4a16-g64", "w4a16-g128"]

# Of the largest logit.
TOLERANCE = 1e-3


def stored(folder):
    """All tensors of a folder by name."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})
    return tensors


def dequantized(packed, scale, shape, dtype):
    """Words of eight codes, the first in the lowest bits, each 8 more than its level. Products are exact in single precision."""
    words = packed.numpy().astype(np.uint32)
    codes = (words[..., None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 15
    levels = codes.reshape(len(words), -1).astype(np.float32) - 8
    assert list(levels.shape) == shape.tolist(), (levels.shape, shape)
    products = levels.reshape(*scale.shape, -1) * scale.float().numpy()[..., None]
    return torch.from_numpy(products.reshape(levels.shape)).to(dtype)


def twin(folder, to, dtype):
    """The folder with decoded weights and without a quantization; how many weights were decoded."""
    tensors, decoded = {}, 0
    all_stored = stored(folder)
    for name, tensor in all_stored.items():
        module = name.removesuffix(".weight_packed")
        if module != name:
            scale, shape = (all_stored[f"{module}.weight_{end}"] for end in ["scale", "shape"])
            # Experts are merged when they are loaded, decompressed in their scales' own type.
            of_products = scale.dtype if ".experts." in module else dtype
            tensors[f"{module}.weight"] = dequantized(tensor, scale, shape, of_products).to(dtype)
            decoded += tensor.numel() * 8
        elif not name.endswith((".weight_scale", ".weight_shape")):
            tensors[name] = tensor
    to.mkdir()
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (to / "config.json").write_text(json.dumps(config))
    return decoded


def load(folder, dtype):
    """The model, and what of the checkpoint and of the model found no counterpart."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    lost = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    # Merged experts keep the type of their scales.
    return model.to(dtype).eval(), lost


def compare(out, plain, dtype):
    """A line that says what was found, and whether it is good."""
    decoded = twin(out, plain, dtype)
    model, lost = load(out, dtype)
    reference, lost_of_twin = load(plain, dtype)
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, model.config.get_text_config().vocab_size, (2, 64), generator=generator)
    with torch.no_grad():
        logits, expected = model(ids).logits.float(), reference(ids).logits.float()
    off = ((logits - expected).abs().max() / expected.abs().max()).item()
    # Weights are decompressed by the first pass.
    ours, theirs = model.state_dict(), reference.state_dict()
    other = [name for name, weight in theirs.items() if name not in ours or not torch.equal(weight, ours[name])]
    good = not lost and not lost_of_twin and not other and off <= TOLERANCE
    return good, (
        f"{str(dtype).removeprefix('torch.'):8} {decoded:8} weights of 4 bits, keys lost: {lost or lost_of_twin or 'none'}, "
        f"tensors that differ: {other or 'none'} of {len(theirs)}, logits off by {off:.1e} of the largest"
    )


def main(halfbyte, scratch, *checkpoints):
    failures = 0
    for checkpoint in map(Path, checkpoints):
        for format in FORMATS:
            out, plain = Path(scratch) / f"{checkpoint.name}-{format}", Path(scratch) / "twin"
            command = [halfbyte, "quantize", checkpoint, "--to", "compressed-tensors", "--format", format, "--out", out]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            for dtype in [torch.float32, torch.bfloat16]:
                good, line = compare(out, plain, dtype)
                failures += not good
                print(f"{'ok' if good else 'FAILED':6} {checkpoint.name:10} {format:10} {line}", flush=True)
                shutil.rmtree(plain)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
