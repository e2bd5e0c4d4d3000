"""The peers' own logits on the CPU, beside each folder: logits.py ENGINE FOLDER... [--dtype float32] [--suffix .logits]

ENGINE: transformers (compressed-tensors, and AutoRound's and GPTQ's where their packages are installed), gptqmodel.

Writes FOLDER.logits/ids.safetensors (`input_ids` [2, 64], seed 7), FOLDER.logits/logits.safetensors (F32 [2, 64, vocabulary]) and
FOLDER.logits/how.json: who computed it, in what type, and which keys were lost. What exists already is left alone.
"""

import argparse
import gc
import json
import os
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from windows import vocabulary

parser = argparse.ArgumentParser()
parser.add_argument("engine")
parser.add_argument("folders", type=Path, nargs="+")
parser.add_argument("--dtype", default="float32")
parser.add_argument("--suffix", default=".logits")
parser.add_argument("--weights-only", action="store_true", help="compressed-tensors: leave activations alone where they were to be quantized")
parser.add_argument("--widen", action="store_true", help="compressed-tensors of FP4 and E8M0 scales: its code decompresses to float32, not to its BF16")
parser.add_argument("--backend", help="of AutoRound or GPTQModel")
options = parser.parse_args()
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
DTYPE = getattr(torch, options.dtype)


def stored(folder):
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})
    return tensors


def widened(model, folder):
    """GPTQModel's kernels take half floats only: its own code unpacks, with widened scales, and nn.Linear multiplies in single precision."""
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    tensors = stored(folder)
    for name, module in list(model.named_modules()):
        if not hasattr(module, "qweight"):
            continue
        module.scales = tensors[f"{name}.scales"].float()
        if type(module).__name__.startswith("Awq"):
            weight = dequantize_gemm(module.qweight, module.qzeros, module.scales, module.bits, module.group_size)
        else:
            module.dequant_dtype = torch.int32
            weight = module.dequantize_weight()
        assert weight.dtype == torch.float32, weight.dtype
        linear = torch.nn.Linear(module.in_features, module.out_features, bias=f"{name}.bias" in tensors)
        linear.weight.data = weight.T.contiguous()[: module.out_features, : module.in_features]
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, linear)
    model = model.float()
    plain = {name: tensor.float() for name, tensor in tensors.items() if not name.endswith((".qweight", ".qzeros", ".scales", ".g_idx"))}
    _, unexpected = model.load_state_dict(plain, strict=False)
    assert not unexpected, unexpected
    return model


def by_gptqmodel(folder, how):
    from gptqmodel import BACKEND, GPTQModel

    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    backend = options.backend or ("awq_torch" if config["quant_method"] == "awq" else "gptq_torch")
    how["engine"] = f"GPTQModel {backend}"
    return GPTQModel.load(str(folder), device="cpu", backend=BACKEND(backend), dtype=DTYPE if DTYPE != torch.float32 else torch.bfloat16).model


def in_single_precision():
    """compressed-tensors widens FP4 codes and E8M0 scales to BF16 and then multiplies, whatever the model's type, which fails in float32."""
    from compressed_tensors.compressors.mxfp8.base import MXFP8QuantizationCompressor
    from compressed_tensors.compressors.nvfp4 import base

    unpack = base.unpack_fp4_from_uint8
    if unpack.__name__ == "<lambda>":
        return
    base.unpack_fp4_from_uint8 = lambda packed, rows, columns: unpack(packed, rows, columns, torch.float32)
    scale = MXFP8QuantizationCompressor._decompress_scale.__func__
    MXFP8QuantizationCompressor._decompress_scale = classmethod(lambda cls, exponents: scale(cls, exponents).float())


def by_transformers(folder, how):
    from transformers import AutoModelForCausalLM

    more = {}
    how["engine"] = "transformers"
    if options.widen:
        in_single_precision()
        how["engine"] += ", FP4 and E8M0 scales decompressed to float32"
    if options.backend:
        from transformers import AutoRoundConfig

        more["quantization_config"] = AutoRoundConfig(backend=options.backend)
        how["engine"] = f"transformers with AutoRound's {options.backend}"
    if options.weights_only:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder)
        for group in config.quantization_config["config_groups"].values():
            group["input_activations"] = None
        more["config"] = config
        how["engine"] += ", its input_activations set to null"
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=DTYPE, output_loading_info=True, device_map="cpu", attn_implementation="eager", **more
    )
    how["lost"] = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    return model


@torch.no_grad()
def one(folder, out):
    how = {"engine": "", "dtype": options.dtype, "versions": {}}
    for name in ("torch", "transformers", "compressed-tensors", "gptqmodel", "auto-round"):
        try:
            how["versions"][name] = version(name)
        except PackageNotFoundError:
            pass
    model = (by_gptqmodel if options.engine == "gptqmodel" else by_transformers)(folder, how).eval()
    kinds = {}
    for module in model.modules():
        if type(module).__name__ != "Linear" and hasattr(module, "in_features") or hasattr(module, "quantization_scheme"):
            kinds[type(module).__name__] = kinds.get(type(module).__name__, 0) + 1
    how["kernels"] = kinds
    ids = torch.randint(0, vocabulary(folder), (2, 64), generator=torch.Generator().manual_seed(7))
    logits = model(ids).logits
    if options.engine == "gptqmodel" and DTYPE == torch.float32:
        native, model = logits.float(), widened(model, folder)
        how["engine"] += ": its unpacking, its scales widened, multiplied in float32"
        logits = model(ids).logits
        how["native"] = {"dtype": "bfloat16", "off": ((native - logits).abs().max() / logits.abs().max()).item()}
    how["logits_dtype"] = str(logits.dtype)
    types = {}
    for _, tensor in [*model.named_parameters(), *model.named_buffers()]:
        types[str(tensor.dtype)] = types.get(str(tensor.dtype), 0) + 1
    how["tensor_dtypes"] = types
    how["largest"] = logits.abs().max().item()
    out.mkdir(parents=True, exist_ok=True)
    save_file({"input_ids": ids}, out / "ids.safetensors")
    save_file({"logits": logits.float().contiguous()}, out / "logits.safetensors")
    (out / "how.json").write_text(json.dumps(how, indent=1))
    print("LOGITS", folder.name, json.dumps(how), flush=True)


for folder in options.folders:
    out = folder.with_name(folder.name + options.suffix)
    if folder.name.endswith(".logits") or (out / "how.json").exists():
        continue
    try:
        one(folder, out)
    except Exception as error:
        traceback.print_exc()
        print("FAILED", folder.name, type(error).__name__, str(error)[:300], flush=True)
    gc.collect()
