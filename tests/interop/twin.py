"""Folders of quantized linears against the same model with the weights that NumPy decodes: what the checks of these folders share."""

import json
import subprocess

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()


def stored(folder):
    """All tensors of a folder by name."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})
    return tensors


def nibbles(words, order=range(8)):
    """The eight codes of each word [..., n] in an order of places, side by side: [..., 8 n]."""
    shifts = 4 * np.array(order, dtype=np.uint32)
    codes = (words.numpy().view(np.uint32)[..., None] >> shifts) & 15
    return codes.reshape(*words.shape[:-1], -1).astype(np.float32)


def twin(folder, to, dtype, packed, decode):
    """The folder with decoded weights and without a quantization; how many weights were decoded.

    `packed` ends the names of what has the codes; `decode` makes the weight, in F32, from what else begins with a module's path.
    """
    tensors, all_stored = {}, stored(folder)
    modules = [name.removesuffix(packed) for name in all_stored if name.endswith(packed)]
    of = {module: {} for module in modules}
    for name, tensor in all_stored.items():
        module, _, end = name.rpartition(".")
        if module in of and end != "bias":
            of[module][end] = tensor
        else:
            tensors[name] = tensor
    decoded = 0
    for module, parts in of.items():
        weight = torch.from_numpy(np.ascontiguousarray(decode(**parts)))
        # Experts are merged when they are loaded, decompressed in their scales' own type.
        scale = parts.get("weight_scale")
        rounded = scale.dtype if ".experts." in module and scale.is_floating_point() else dtype
        tensors[f"{module}.weight"] = weight.to(rounded).to(dtype)
        decoded += weight.numel()
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


def quantize(halfbyte, checkpoint, to, format, out):
    command = [halfbyte, "quantize", checkpoint, "--to", to, "--format", format, "--out", out]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def logits(model):
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, model.config.get_text_config().vocab_size, (2, 64), generator=generator)
    with torch.no_grad():
        return model(ids).logits.float()


def off(found, expected):
    """The largest difference, in units of the largest number."""
    return ((found - expected).abs().max() / expected.abs().max()).item()
