"""Folders of compressed-tensors in transformers: every key finds its place, and the logits are those of the weights that we wrote.

    compressed_check.py HALFBYTE SCRATCH CHECKPOINT...

Each checkpoint (a folder) is quantized in each of FORMATS. transformers loads the folder, which must have no missing and no unexpected
key, and computes logits. The twin is the same model with the weights that the few lines of NumPy below decode from the files. Both are
loaded in single precision, where compressed-tensors multiplies codes with widened scales and rounds nothing, and in the checkpoint's
BF16, in which it rounds every product: then every weight of the two must be the same number.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from twin import load, logits, nibbles, off, quantize, twin

SYMMETRIC = ["w4a16-g32", "w4a16-g64", "w4a16-g128", "mxfp4"]
# transformers does not load experts with zero points.
DENSE = ["w4a16-asym-g32", "w4a16-asym-g64", "w4a16-asym-g128"]

# Of the largest logit.
TOLERANCE = 1e-3

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)


def decode(weight_packed, weight_scale, weight_shape=None, weight_zero_point=None):
    """Words of eight codes, the first in the lowest bits, each 8 more than its level or the zero point more. Products are exact in
    single precision. Without a shape: bytes of two floats of four bits under exponents."""
    if weight_shape is None:
        codes = np.stack([weight_packed.numpy() & 15, weight_packed.numpy() >> 4], axis=-1)
        levels, scale = E2M1[codes.reshape(len(codes), -1)], np.exp2(weight_scale.numpy().astype(np.float32) - 127)
    else:
        levels, scale, zero = nibbles(weight_packed), weight_scale.float().numpy(), 8
        assert list(levels.shape) == weight_shape.tolist(), (levels.shape, weight_shape)
        if weight_zero_point is not None:
            zero = nibbles(weight_zero_point.T.contiguous()).T[: len(levels)]
            zero = np.repeat(zero, levels.shape[1] // scale.shape[1], axis=1)
        levels = levels - zero
    return levels * np.repeat(scale, levels.shape[1] // scale.shape[1], axis=1)


def compare(out, plain, dtype):
    """A line that says what was found, and whether it is good."""
    decoded = twin(out, plain, dtype, ".weight_packed", decode)
    model, lost = load(out, dtype)
    reference, lost_of_twin = load(plain, dtype)
    difference = off(logits(model), logits(reference))
    # Weights are decompressed by the first pass.
    ours, theirs = model.state_dict(), reference.state_dict()
    other = [name for name, weight in theirs.items() if name not in ours or not torch.equal(weight, ours[name])]
    good = not lost and not lost_of_twin and not other and difference <= TOLERANCE
    return good, (
        f"{str(dtype).removeprefix('torch.'):8} {decoded:8} weights of 4 bits, keys lost: {lost or lost_of_twin or 'none'}, "
        f"tensors that differ: {other or 'none'} of {len(theirs)}, logits off by {difference:.1e} of the largest"
    )


def main(halfbyte, scratch, *checkpoints):
    failures = 0
    for checkpoint in map(Path, checkpoints):
        config = json.loads((checkpoint / "config.json").read_text())
        has_experts = any(key.startswith(("num_experts", "num_local_experts", "n_routed_experts")) for key in config)
        for format in SYMMETRIC if has_experts else SYMMETRIC + DENSE:
            out, plain = Path(scratch) / f"{checkpoint.name}-{format}", Path(scratch) / "twin"
            quantize(halfbyte, checkpoint, "compressed-tensors", format, out)
            # Floats of four bits are decompressed to BF16, whatever the model is loaded in.
            for dtype in [torch.bfloat16] if format == "mxfp4" else [torch.float32, torch.bfloat16]:
                good, line = compare(out, plain, dtype)
                failures += not good
                print(f"{'ok' if good else 'FAILED':6} {checkpoint.name:10} {format:15} {line}", flush=True)
                shutil.rmtree(plain)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
