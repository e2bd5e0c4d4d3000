"""Folders of GPTQ and AWQ in transformers, by GPTQModel's kernels: every key finds its place, and the logits are those of the weights
that we wrote.

    gptq_awq_check.py HALFBYTE SCRATCH CHECKPOINT...

Each checkpoint (a folder of a dense model) is quantized in each of FORMATS. transformers loads the folder in half precision, the only one
that these kernels compute in, and must miss no key; the twin is the same model with the weights that NumPy decodes from the files.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from twin import load, logits, nibbles, off, quantize, twin

FORMATS = [(to, f"w4a16-g{group}") for to in ["gptq", "gptq-v2"] for group in [32, 128]]
FORMATS += [("awq", f"w4a16-asym-g{group}") for group in [32, 128]]

# Of the largest logit, which half floats have 11 bits of.
TOLERANCE = 5e-3

# Where in a word of AWQ's each of eight columns is.
AWQ = [0, 4, 1, 5, 2, 6, 3, 7]


def decode_gptq(less, qweight, scales, qzeros, g_idx):
    codes = nibbles(qweight.T.contiguous())
    group = g_idx.numpy()
    zeros, scales = nibbles(qzeros).T + less, scales.float().numpy().T
    return (codes - zeros[:, group]) * scales[:, group]


def decode_awq(qweight, scales, qzeros):
    codes, zeros, scales = nibbles(qweight, AWQ).T, nibbles(qzeros, AWQ).T, scales.float().numpy().T
    group = np.arange(codes.shape[1]) // (codes.shape[1] // scales.shape[1])
    return (codes - zeros[:, group]) * scales[:, group]


def decoder(to):
    if to == "awq":
        return decode_awq
    return lambda **parts: decode_gptq(1 if to == "gptq" else 0, **parts)


def main(halfbyte, scratch, *checkpoints):
    failures = 0
    for checkpoint in map(Path, checkpoints):
        for to, format in FORMATS:
            out, plain = Path(scratch) / f"{checkpoint.name}-{to}-{format}", Path(scratch) / "twin"
            quantize(halfbyte, checkpoint, to, format, out)
            decoded = twin(out, plain, torch.float16, ".qweight", decoder(to))
            model, lost = load(out, torch.float16)
            reference, lost_of_twin = load(plain, torch.float16)
            difference = off(logits(model), logits(reference))
            kernels = sorted({type(module).__name__ for module in model.modules() if hasattr(module, "qweight")})
            good = not lost and not lost_of_twin and kernels and difference <= TOLERANCE
            failures += not good
            print(
                f"{'ok' if good else 'FAILED':6} {checkpoint.name:10} {to:7} {format:15} {decoded:8} weights of 4 bits by "
                f"{', '.join(kernels)}, keys lost: {lost or lost_of_twin or 'none'}, logits off by {difference:.1e} of the largest",
                flush=True,
            )
            shutil.rmtree(plain)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
