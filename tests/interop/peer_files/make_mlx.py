"""MLX folders by mlx-lm on the CPU, and their logits in float32: make_mlx.py CHECKPOINT OUT_DIR NAME [VARIANT...]

logits.safetensors is the quantized product with scales and biases widened to float32, which rounds no weight; logits-unpacked.safetensors multiplies with
what `mx.dequantize` makes of the weights, rounded to the type of their scales.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

mx.set_default_device(mx.cpu)

import numpy as np
from mlx_lm import convert, load
from mlx_lm.utils import dequantize_model
from safetensors.numpy import load_file, save_file

VARIANTS = {
    "4bit-g64": dict(q_bits=4, q_group_size=64),
    "4bit-g32": dict(q_bits=4, q_group_size=32),
    "4bit-g128": dict(q_bits=4, q_group_size=128),
    "3bit-g64": dict(q_bits=3, q_group_size=64),
    "5bit-g64": dict(q_bits=5, q_group_size=64),
    "6bit-g64": dict(q_bits=6, q_group_size=64),
    "8bit-g64": dict(q_bits=8, q_group_size=64),
    "mxfp4": dict(q_mode="mxfp4", q_bits=4, q_group_size=32),
    "mxfp8": dict(q_mode="mxfp8", q_bits=8, q_group_size=32),
    "nvfp4": dict(q_mode="nvfp4", q_bits=4, q_group_size=16),
    "mixed_4_6": dict(q_bits=4, q_group_size=64, quant_predicate="mixed_4_6"),
    "4bit-g64-f16": dict(q_bits=4, q_group_size=64, dtype="float16"),
}


def main(checkpoint, out, name, *variants):
    config = json.loads((Path(checkpoint) / "config.json").read_text())
    ids = np.array(load_file(IDS)["input_ids"]) if (IDS := Path(out) / "ids.safetensors").exists() else None
    for variant in variants or VARIANTS:
        folder = Path(out) / f"mlx-{variant}-{name}"
        if not folder.exists():
            convert(str(checkpoint), str(folder), quantize=True, **VARIANTS[variant])
        model, _ = load(str(folder))
        model.set_dtype(mx.float32)
        logits = np.array(model(mx.array(ids)).astype(mx.float32))
        beside = Path(f"{folder}.logits")
        beside.mkdir(exist_ok=True)
        save_file({"input_ids": ids}, beside / "ids.safetensors")
        save_file({"logits": logits}, beside / "logits.safetensors")
        unpacked = dequantize_model(load(str(folder))[0])
        unpacked.set_dtype(mx.float32)
        save_file({"logits": np.array(unpacked(mx.array(ids)).astype(mx.float32))}, beside / "logits-unpacked.safetensors")
        how = {"engine": "mlx-lm on the CPU, set_dtype(float32) after loading", "dtype": "float32", "versions": {it: version(it) for it in ("mlx", "mlx-lm", "transformers")}}
        (beside / "how.json").write_text(json.dumps(how, indent=1))
        print("made", variant, logits.shape, np.abs(logits).max(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
