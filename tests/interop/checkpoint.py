"""A Hugging Face checkpoint read plainly: every tensor in float32, FP8 weights multiplied by their block scales.

Written apart from halfbyte's own readers, so that an error in those shows.
"""

import json
from pathlib import Path

import numpy as np

FLOATS = {"F32": (np.float32, 4), "F16": (np.float16, 2), "BF16": (np.uint16, 2), "F8_E4M3": (np.uint8, 1)}


def e4m3_table():
    """The value of each of the 256 E4M3 codes (OCP 8-bit floating point: bias 7, no infinities, NaN at 0x7f)."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    value[(code & 0x7F) == 0x7F] = np.nan
    return np.where(code & 0x80, -value, value).astype(np.float32)


def read_file(path):
    """Name -> (dtype, array as stored) of one safetensors file."""
    raw = np.memmap(path, np.uint8, mode="r")
    length = int.from_bytes(raw[:8].tobytes(), "little")
    header = json.loads(raw[8 : 8 + length].tobytes())
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        kind, _ = FLOATS[entry["dtype"]]
        tensors[name] = entry["dtype"], np.frombuffer(raw[begin:end].tobytes(), kind).reshape(entry["shape"])
    return tensors


def widen(dtype, stored):
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E4M3":
        return e4m3_table()[stored]
    return stored.astype(np.float32)


def read(folder):
    """(config, name -> float32 array) without the block scales and without multi-token-prediction layers."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    stored = {}
    for shard in sorted(folder.glob("*.safetensors")):
        stored.update(read_file(shard))
    tensors = {}
    for name, (dtype, values) in stored.items():
        if name.endswith("_scale_inv") or is_extra_layer(name, config["num_hidden_layers"]):
            continue
        values = widen(dtype, values)
        if name + "_scale_inv" in stored:
            rows, columns = config["quantization_config"]["weight_block_size"]
            scale = widen(*stored[name + "_scale_inv"]).repeat(rows, 0).repeat(columns, 1)
            values = values * scale[: values.shape[0], : values.shape[1]]
        tensors[name] = values
    config.pop("quantization_config", None)
    return config, tensors


def is_extra_layer(name, layers):
    parts = name.split(".")
    return parts[:2] == ["model", "layers"] and int(parts[2]) >= layers


def interleave_halves(matrix, heads):
    """Rows of each head from Hugging Face's rotary order (halves) to the one of GGUF's `llama` (pairs)."""
    return matrix.reshape(heads, 2, -1, matrix.shape[-1]).swapaxes(1, 2).reshape(matrix.shape)


LLAMA = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
DEEPSEEK = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm", "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp", "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp", "mlp.shared_experts.down_proj": "ffn_down_shexp",
}  # fmt: skip
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_tensors(config, tensors):
    """The same weights under GGUF's names and in GGUF's arrangement: what a GGUF of this checkpoint must hold."""
    out = {ours + ".weight": tensors[theirs + ".weight"] for theirs, ours in OUTSIDE.items() if theirs + ".weight" in tensors}
    deepseek = config["model_type"] == "deepseek_v3"
    heads = config["num_attention_heads"]
    for layer in range(config["num_hidden_layers"]):
        source, block = f"model.layers.{layer}.", f"blk.{layer}."
        for theirs, ours in (DEEPSEEK if deepseek else LLAMA).items():
            values = tensors.get(f"{source}{theirs}.weight")
            if values is None:
                continue
            if ours == "attn_q":
                values = interleave_halves(values, heads)
            if ours == "attn_k":
                values = interleave_halves(values, config["num_key_value_heads"])
            out[f"{block}{ours}.weight"] = values
        if not deepseek:
            continue
        nope, value = config["qk_nope_head_dim"], config["v_head_dim"]
        both = tensors[source + "self_attn.kv_b_proj.weight"].reshape(heads, nope + value, -1)
        out[block + "attn_k_b.weight"] = both[:, :nope].swapaxes(1, 2)
        out[block + "attn_v_b.weight"] = both[:, nope:]
        if source + "mlp.gate.weight" in tensors:
            out[block + "exp_probs_b.bias"] = tensors[source + "mlp.gate.e_score_correction_bias"]
            for kind in ("gate", "up", "down"):
                out[f"{block}ffn_{kind}_exps.weight"] = np.stack(
                    [tensors[f"{source}mlp.experts.{e}.{kind}_proj.weight"] for e in range(config["n_routed_experts"])]
                )
    return out


def write_float32(folder, config, tensors, tokenizer_from):
    """The checkpoint as one F32 safetensors file, for a reader that knows no FP8."""
    import shutil

    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: np.ascontiguousarray(v) for n, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tokenizer_from) / name, folder / name)
