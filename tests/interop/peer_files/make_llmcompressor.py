"""Folders of compressed-tensors by llm-compressor on the CPU, all in one process.

    make_llmcompressor.py CHECKPOINT TEXT OUT_DIR NAME VARIANT... [--chunks N] [--context N]

VARIANT is a key of VARIANTS; its folder is OUT_DIR/llmcompressor-VARIANT-NAME.
"""

import argparse
import os
import traceback
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from transformers import AutoModelForCausalLM, AutoTokenizer
from windows import windows


def only(**weights):
    """A scheme of weights alone."""
    return {"group_0": QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))}


def rtn(scheme=None, groups=None, ignore=("lm_head",), targets="Linear"):
    if groups:
        return QuantizationModifier(config_groups=groups, ignore=list(ignore))
    return QuantizationModifier(targets=targets, scheme=scheme, ignore=list(ignore))


def gptq(scheme=None, groups=None, ignore=("lm_head",), **more):
    if groups:
        return GPTQModifier(config_groups=groups, ignore=list(ignore), **more)
    return GPTQModifier(targets="Linear", scheme=scheme, ignore=list(ignore), **more)


def int4(group, symmetric=True, bits=4, **more):
    strategy = dict(strategy="group", group_size=group) if group else dict(strategy="channel")
    return only(num_bits=bits, type="int", symmetric=symmetric, **strategy, **more)


FP8 = dict(num_bits=8, type="float", symmetric=True)
# name: (recipe, whether it is calibrated)
VARIANTS = {
    "rtn-w4a16-g128": (lambda: rtn("W4A16"), False),
    "rtn-w4a16-g32": (lambda: rtn(groups=int4(32)), False),
    "rtn-w4a16-asym-g128": (lambda: rtn("W4A16_ASYM"), False),
    "rtn-w4a16-channel": (lambda: rtn(groups=int4(None)), False),
    "rtn-w8a16-channel": (lambda: rtn("W8A16"), False),
    "rtn-w8a16-g32": (lambda: rtn(groups=int4(32, bits=8)), False),
    "rtn-w3a16-g128": (lambda: rtn("W3A16"), False),
    "gptq-w4a16-g128": (lambda: gptq("W4A16"), True),
    "gptq-w4a16-asym-g32": (lambda: gptq(groups=int4(32, symmetric=False)), True),
    "gptq-w4a16-actorder-group-g128": (lambda: gptq(groups=int4(128, actorder="group")), True),
    "gptq-w4a16-actorder-weight-g128": (lambda: gptq(groups=int4(128, actorder="weight")), True),
    "nvfp4a16": (lambda: rtn("NVFP4A16"), False),
    "nvfp4": (lambda: rtn("NVFP4"), True),
    "mxfp4a16": (lambda: rtn("MXFP4A16"), False),
    "mxfp4": (lambda: rtn("MXFP4"), False),
    "mxfp8a16": (lambda: rtn("MXFP8A16"), False),
    "fp8-channel": (lambda: rtn(groups=only(**FP8, strategy="channel")), False),
    "fp8-tensor": (lambda: rtn(groups=only(**FP8, strategy="tensor")), False),
    "fp8-block": (lambda: rtn(groups=only(**FP8, strategy="block", block_structure=[128, 128])), False),
    "fp8-dynamic": (lambda: rtn("FP8_DYNAMIC"), False),
    "fp8-static": (lambda: rtn("FP8"), True),
    "fp8-block-dynamic": (lambda: rtn("FP8_BLOCK"), False),
    "w8a8": (lambda: rtn("W8A8"), False),
    "mixed": (
        lambda: rtn(
            groups={
                "attention": QuantizationScheme(targets=["re:.*self_attn.(q|k|v|o)_proj$"], weights=QuantizationArgs(**FP8, strategy="channel")),
                "mlp": QuantizationScheme(
                    targets=["re:.*mlp.(gate|up|down)_proj$"],
                    weights=QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=64),
                ),
            },
            ignore=["lm_head", "re:.*layers.1.*"],
        ),
        False,
    ),
}

parser = argparse.ArgumentParser()
parser.add_argument("checkpoint")
parser.add_argument("text")
parser.add_argument("out", type=Path)
parser.add_argument("name")
parser.add_argument("variants", nargs="*")
parser.add_argument("--chunks", type=int, default=64)
parser.add_argument("--context", type=int, default=256)
options = parser.parse_args()
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
data = windows(options.checkpoint, options.text, options.chunks, options.context)
data = Dataset.from_dict({"input_ids": data, "attention_mask": [[1] * len(ids) for ids in data]})
tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
for variant in options.variants or VARIANTS:
    out = options.out / f"llmcompressor-{variant}-{options.name}"
    if out.exists():
        continue
    recipe, calibrated = VARIANTS[variant]
    try:
        model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype="auto")
        more = dict(dataset=data, max_seq_length=options.context, num_calibration_samples=options.chunks) if calibrated else {}
        oneshot(model=model, recipe=recipe(), **more)
        model.save_pretrained(out, save_compressed=True)
        tokenizer.save_pretrained(out)
        print("made", variant, flush=True)
    except Exception:
        print("FAILED", variant, flush=True)
        traceback.print_exc()
