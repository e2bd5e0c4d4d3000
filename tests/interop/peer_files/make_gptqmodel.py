"""A GPTQ or AWQ folder by GPTQModel on the CPU.

    make_gptqmodel.py CHECKPOINT TEXT OUT [--method gptq|awq|rtn] [--format gptq|gptq_v2|gemm] [--group N] [--bits N] [--asym] [--desc-act]
        [--chunks N] [--context N] [--batch N] [--dynamic JSON]
"""

import argparse
import json
import os
import time

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from gptqmodel import GPTQModel
from gptqmodel.quantization.config import FORMAT, METHOD, AWQConfig, GPTQConfig, RTNConfig
from windows import windows

parser = argparse.ArgumentParser()
parser.add_argument("checkpoint")
parser.add_argument("text")
parser.add_argument("out")
parser.add_argument("--method", default="gptq")
parser.add_argument("--format", default=None)
parser.add_argument("--bits", type=int, default=4)
parser.add_argument("--group", type=int, default=128)
parser.add_argument("--asym", action="store_true")
parser.add_argument("--desc-act", action="store_true")
parser.add_argument("--chunks", type=int, default=128)
parser.add_argument("--context", type=int, default=256)
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--lm-head", action="store_true")
parser.add_argument("--dynamic", type=json.loads, default=None)
options = parser.parse_args()

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
common = dict(bits=options.bits, group_size=options.group, sym=not options.asym, device="cpu", lm_head=options.lm_head, dynamic=options.dynamic)
if options.method == "gptq":
    config = GPTQConfig(format=FORMAT(options.format or "gptq"), desc_act=options.desc_act, **common)
elif options.method == "rtn":
    config = RTNConfig(format=FORMAT(options.format or "gptq"), **common)
else:
    config = AWQConfig(format=FORMAT(options.format or "gemm"), **common)
model = GPTQModel.load(options.checkpoint, config)
data = windows(options.checkpoint, options.text, options.chunks, options.context)
calibration = [{"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)} for ids in data]
began = time.time()
model.quantize(calibration if options.method != "rtn" else None, batch_size=options.batch)
print(f"quantized in {time.time() - began:.0f} s")
model.save(options.out)
