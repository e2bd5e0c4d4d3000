"""Makes tests/fixtures/decode/{gguf,mlx}.safetensors: blocks of random bytes and what gguf-py and mlx decode them to.

Run in the repository's root with PyPI's gguf 0.19, mlx[cpu] 0.32.4, numpy and safetensors.

Per format: `<name>.<plane>` [bytes] for each of its planes, `<name>.values` [weights] f32. Codes are random, so that all occur; the
indices of codebooks count through the whole codebook; scales are random too, kept finite, with zero, the smallest and
the largest among them.
"""

import mlx.core as mx
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize
from safetensors.numpy import save_file

rng = np.random.default_rng(20261122)

# Zero, smallest and largest subnormal, smallest and largest normal.
EDGES = np.array([0x0000, 0x0001, 0x03FF, 0x0400, 0x7BFF, 0xFBFF, 0x8001], np.uint16)


def half_scales(n):
    """Random half floats, mostly of the size of weights, all finite."""
    scales = rng.normal(0, 0.01, n).astype(np.float16).view(np.uint16)
    scales[: len(EDGES)] = EDGES[: len(scales)]
    return scales


def put_halves(blocks, offset):
    blocks[:, offset : offset + 2] = half_scales(len(blocks)).view(np.uint8).reshape(-1, 2)


# Type: number of blocks, offsets of its half-float scales.
GGUF = {
    "F16": (64, ()),
    "BF16": (64, ()),
    "Q4_0": (16, (0,)),
    "Q4_1": (16, (0, 2)),
    "Q5_0": (16, (0,)),
    "Q5_1": (16, (0, 2)),
    "Q8_0": (16, (0,)),
    "Q2_K": (8, (80, 82)),
    "Q3_K": (8, (108,)),
    "Q4_K": (8, (0, 2)),
    "Q5_K": (8, (0, 2)),
    "Q6_K": (8, (208,)),
    "Q8_K": (8, ()),
    "IQ4_NL": (16, (0,)),
    "IQ4_XS": (8, (0,)),
    "IQ3_XXS": (8, (0,)),
    "IQ3_S": (8, (0,)),
    "IQ2_XXS": (8, (0,)),
    "IQ2_XS": (16, (0,)),
    "IQ2_S": (32, (0,)),
    "IQ1_S": (64, (0,)),
    "IQ1_M": (64, ()),
    "TQ1_0": (8, (52,)),
    "TQ2_0": (8, (64,)),
    "Q1_0": (8, (0,)),
    "MXFP4": (16, ()),
    "NVFP4": (64, ()),
}


def whole_codebook(name, blocks):
    """Lets the codebook's indices count through all of its entries."""
    n = len(blocks)
    if name in ("IQ2_XXS", "IQ3_XXS"):
        for g in range(8 if name == "IQ2_XXS" else 1):
            start, size = (2 + 8 * g, 4) if name == "IQ2_XXS" else (2, 64)
            step = (np.arange(n)[:, None] * 8 + g) * 4 if name == "IQ2_XXS" else np.arange(n)[:, None] * 64
            blocks[:, start : start + size] = (step + np.arange(size)).astype(np.uint8)
    elif name == "IQ2_XS":
        index = np.arange(n * 32).reshape(n, 32).astype(np.uint16)
        signs = rng.integers(0, 128, (n, 32), dtype=np.uint16)
        blocks[:, 2:66] = (index | signs << 9).view(np.uint8)
    elif name == "IQ2_S":
        index = np.arange(n * 32).reshape(n, 32)
        blocks[:, 2:34] = index & 255
        high = (index >> 8).reshape(n, 8, 4) << np.array([0, 2, 4, 6])
        blocks[:, 66:74] = high.sum(-1)
    elif name == "IQ3_S":
        index = np.arange(n * 64).reshape(n, 64)
        blocks[:, 2:66] = index & 255
        high = (index >> 8).reshape(n, 8, 8) << np.arange(8)
        blocks[:, 66:74] = high.sum(-1)
    elif name == "IQ1_S":
        index = np.arange(n * 32).reshape(n, 32)
        blocks[:, 2:34] = index & 255
        high = ((index >> 8).reshape(n, 8, 4) << np.array([0, 3, 6, 9])).sum(-1)
        top = rng.integers(0, 16, (n, 8)) << 12
        blocks[:, 34:50] = (high | top).astype(np.uint16).view(np.uint8)
    elif name == "IQ1_M":
        index = np.arange(n * 32).reshape(n, 32)
        blocks[:, 0:32] = index & 255
        high = (index >> 8).reshape(n, 16, 2) | rng.integers(0, 2, (n, 16, 2)) << 3
        blocks[:, 32:48] = high[..., 0] | high[..., 1] << 4


def gguf_blocks(name):
    n, scales = GGUF[name]
    size = GGML_QUANT_SIZES[Type[name]][1]
    blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
    for offset in scales:
        put_halves(blocks, offset)
    whole_codebook(name, blocks)
    if name == "F16":
        blocks[:] = np.resize(half_scales(n), n).view(np.uint8).reshape(n, 2)
    elif name == "BF16":
        words = blocks.view(np.uint16)
        words[(words & 0x7F80) == 0x7F80] &= 0xBFFF
    elif name == "IQ1_M":
        # The scale's four nibbles lie on top of four words.
        words = blocks[:, 48:56].copy().view(np.uint16) & 0x0FFF
        scale = half_scales(n)[:, None] >> np.array([0, 4, 8, 12], np.uint16) & 15
        blocks[:, 48:56] = (words | scale << 12).astype(np.uint16).view(np.uint8)
    elif name == "Q8_K":
        blocks[:, :4] = rng.normal(0, 0.01, n).astype(np.float32).view(np.uint8).reshape(n, 4)
    elif name == "MXFP4":
        # Up to the largest scale at which 6 times it is finite.
        blocks[:, 0] = np.concatenate([[0, 1, 2, 252], rng.integers(0, 253, n - 4)])
    elif name == "NVFP4":
        blocks[:, :4] = rng.permutation(256).reshape(n, 4)
    return blocks


def gguf_values(name, blocks):
    if name == "Q8_K":  # ggml's dequantize_row_q8_K; gguf-py knows its size only
        return blocks[:, :4].copy().view(np.float32) * blocks[:, 4:260].view(np.int8).astype(np.float32)
    if name == "Q1_0":  # ggml's dequantize_row_q1_0
        d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        return np.where(np.unpackbits(blocks[:, 2:], axis=1, bitorder="little") == 1, d, -d)
    return dequantize(blocks, Type[name])


def scales(dtype, n):
    """Scales or biases of an affine format as mlx holds them, and their bytes."""
    values = rng.normal(0, 0.01, n).astype(np.float32)
    values[:3] = [0, 1e-7, -1e-30 if dtype != mx.float16 else -6e-8]
    array = mx.array(values).astype(dtype).reshape(1, n)
    return array, np.array(array.view(mx.uint8)).reshape(-1)


def finite_e4m3(codes, is_e4m3):
    return np.where(is_e4m3 & (codes & 127 == 127), codes - 1, codes).astype(np.uint8)


def mlx_all(out):
    for dtype, suffix in [(mx.bfloat16, ""), (mx.float16, "-f16"), (mx.float32, "-f32")]:
        for bits in [2, 3, 4, 5, 6, 8]:
            for group in [32, 64, 128]:
                groups = 6
                codes = rng.integers(0, 256, (1, groups * group * bits // 8), dtype=np.uint8)
                s, s_bytes = scales(dtype, groups)
                b, b_bytes = scales(dtype, groups)
                values = mx.dequantize(mx.array(codes).view(mx.uint32), s, b, group_size=group, bits=bits)
                assert values.dtype == dtype
                put(out, f"{bits}bit-g{group}{suffix}", [codes, s_bytes, b_bytes], values)
    for mode, bits, group, top in [("mxfp4", 4, 32, 253), ("mxfp8", 8, 32, 246), ("nvfp4", 4, 16, 256)]:
        codes = finite_e4m3(rng.integers(0, 256, (1, 64 * group * bits // 8), dtype=np.uint8), bits == 8)
        s = np.concatenate([[0, 1, top - 2], rng.integers(0, top, 61)])
        s = finite_e4m3(s.astype(np.uint8).reshape(1, 64), group == 16)
        values = mx.dequantize(
            mx.array(codes).view(mx.uint32), mx.array(s), group_size=group, bits=bits, mode=mode, dtype=mx.float32
        )
        put(out, mode, [codes, s], values)


def put(out, name, planes, values):
    values = np.array(mx.array(values).astype(mx.float32)).reshape(-1)
    assert np.isfinite(values).all(), name
    for i, plane in enumerate(planes):
        out[f"{name}.{i}"] = plane.reshape(-1)
    out[f"{name}.values"] = values


gguf, mlx = {}, {}
for name in GGUF:
    blocks = gguf_blocks(name)
    put(gguf, name.lower(), [blocks], gguf_values(name, blocks).astype(np.float32))
mlx_all(mlx)
for name in ["f16", "bf16"]:
    mlx |= {key: value for key, value in gguf.items() if key.startswith(name + ".")}
save_file(gguf, "tests/fixtures/decode/gguf.safetensors")
save_file(mlx, "tests/fixtures/decode/mlx.safetensors")
