"""Folders by AutoRound on the CPU, of one tuning: OUT/… for each of FORMATS.

    make_autoround.py CHECKPOINT TEXT OUT FORMATS [--scheme W4A16] [--group N] [--bits N] [--asym] [--iters N] [--chunks N] [--context N] [--batch N]
        [--layer-config JSON] [--lm-head] [--compile]

FORMATS are those of `quantize_and_save`, separated by commas: auto_round, auto_gptq, auto_awq, llm_compressor. Samples are the text's windows.
"""

import argparse
import json
import os
import time

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer
from windows import windows

parser = argparse.ArgumentParser()
parser.add_argument("checkpoint")
parser.add_argument("text")
parser.add_argument("out")
parser.add_argument("formats")
parser.add_argument("--scheme", default="W4A16")
parser.add_argument("--bits", type=int, default=None)
parser.add_argument("--group", type=int, default=None)
parser.add_argument("--asym", action="store_true")
parser.add_argument("--iters", type=int, default=200)
parser.add_argument("--chunks", type=int, default=128)
parser.add_argument("--context", type=int, default=256)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--lm-head", action="store_true")
parser.add_argument("--compile", action="store_true")
parser.add_argument("--lr", type=float, default=None)
parser.add_argument("--layer-config", type=json.loads, default=None)
options = parser.parse_args()

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype="auto")
data = [torch.tensor([ids]) for ids in windows(options.checkpoint, options.text, options.chunks, options.context)]
more = {key: value for key, value in dict(bits=options.bits, group_size=options.group, sym=False if options.asym else None).items() if value is not None}
if options.lr:
    more["lr"] = options.lr
if options.lm_head:
    more["quant_lm_head"] = True
rounder = AutoRound(
    model, tokenizer, scheme=options.scheme, dataset=data, iters=options.iters, seqlen=options.context, nsamples=options.chunks, batch_size=options.batch,
    device_map="cpu", enable_torch_compile=options.compile, layer_config=options.layer_config, **more,
)  # fmt: skip
began = time.time()
rounder.quantize_and_save(options.out, format=options.formats)
print(f"quantized in {time.time() - began:.0f} s")
