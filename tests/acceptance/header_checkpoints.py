"""Checkpoints of well-known models at their real names, types and shapes with a hole for every weight, for `--dry-run`: a few kilobytes
of disk. The tokenizer is tiny-llama's.

    header_checkpoints.py MODEL OUT
"""

import json
import shutil
import sys
from pathlib import Path

from common import FIXTURES
from safetensors_writer import write_shards

COMMON = {"torch_dtype": "bfloat16", "rms_norm_eps": 1e-6, "bos_token_id": 0, "eos_token_id": 0}

# The models' own config.json, without what neither sizes nor the cache depend on.
CONFIGS = {
    # 80 · 8 heads · (128 + 128) · 2 = 327,680 bytes of cache for each token.
    "llama-3-70b": COMMON | {
        "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 28672, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 128256, "rope_theta": 500000.0, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    },
    "gemma-3-27b": COMMON | {
        "model_type": "gemma3_text", "hidden_size": 5376, "num_hidden_layers": 62, "intermediate_size": 21504, "head_dim": 128,
        "num_attention_heads": 32, "num_key_value_heads": 16, "vocab_size": 262208, "sliding_window": 1024, "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 168, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "max_position_embeddings": 131072,
        "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
    },
    "qwen3.5-27b": COMMON | {
        "model_type": "qwen3_5_text", "hidden_size": 5120, "num_hidden_layers": 64, "intermediate_size": 17408, "head_dim": 256,
        "num_attention_heads": 24, "num_key_value_heads": 4, "vocab_size": 248320, "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 48,
        "linear_value_head_dim": 128, "partial_rotary_factor": 0.25, "rope_theta": 10000000.0, "max_position_embeddings": 262144,
        "tie_word_embeddings": False,
    },
    # 94 · 4 heads · (128 + 128) · 2 = 192,512 bytes of cache for each token.
    "qwen3-235b-a22b": COMMON | {
        "model_type": "qwen3_moe", "hidden_size": 4096, "num_hidden_layers": 94, "intermediate_size": 12288, "head_dim": 128,
        "num_attention_heads": 64, "num_key_value_heads": 4, "vocab_size": 151936, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 1536, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "rope_theta": 1000000.0, "max_position_embeddings": 40960, "tie_word_embeddings": False,
    },
}  # fmt: skip


def mlp(config, inner):
    hidden = config["hidden_size"]
    return {"gate_proj.weight": (inner, hidden), "up_proj.weight": (inner, hidden), "down_proj.weight": (hidden, inner)}


def attention(config, gated=False, normed=False):
    hidden, heads, kv = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim", hidden // heads)
    queries = heads * head
    out = {
        "q_proj.weight": (queries * (1 + gated), hidden), "k_proj.weight": (kv * head, hidden), "v_proj.weight": (kv * head, hidden),
        "o_proj.weight": (hidden, queries),
    }  # fmt: skip
    return out | ({"q_norm.weight": (head,), "k_norm.weight": (head,)} if normed else {})


def delta(config):
    hidden, taps = config["hidden_size"], config["linear_conv_kernel_dim"]
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    heads, value = config["linear_num_value_heads"], config["linear_value_head_dim"]
    columns = 2 * keys + heads * value
    return {
        "A_log": (heads,), "dt_bias": (heads,), "conv1d.weight": (columns, 1, taps), "norm.weight": (value,),
        "in_proj_a.weight": (heads, hidden), "in_proj_b.weight": (heads, hidden), "in_proj_qkv.weight": (columns, hidden),
        "in_proj_z.weight": (heads * value, hidden), "out_proj.weight": (hidden, heads * value),
    }  # fmt: skip


def layer(config, number):
    """Name -> shape of the tensors of a layer."""
    kind, hidden = config["model_type"], config["hidden_size"]
    norms = ["input_layernorm", "post_attention_layernorm"]
    if kind == "gemma3_text":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    out = {f"{name}.weight": (hidden,) for name in norms}

    def add(module, tensors):
        out.update({f"{module}.{name}": shape for name, shape in tensors.items()})

    if kind == "qwen3_5_text" and (number + 1) % config["full_attention_interval"]:
        add("linear_attn", delta(config))
    else:
        add("self_attn", attention(config, gated=kind == "qwen3_5_text", normed=kind != "llama"))
    if "num_experts" in config:
        out["mlp.gate.weight"] = (config["num_experts"], hidden)
        for expert in range(config["num_experts"]):
            add(f"mlp.experts.{expert}", mlp(config, config["moe_intermediate_size"]))
    else:
        add("mlp", mlp(config, config["intermediate_size"]))
    return out


def tensors(config):
    vocabulary, hidden = config["vocab_size"], config["hidden_size"]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocabulary, hidden)
    for number in range(config["num_hidden_layers"]):
        for name, shape in layer(config, number).items():
            yield f"model.layers.{number}.{name}", shape


def make(model, out):
    out, config = Path(out), CONFIGS[model]
    holes = ((name, "BF16", list(shape), lambda: None) for name, shape in tensors(config))
    write_shards(out, holes, 5_000_000_000)
    (out / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FIXTURES / "tiny-llama" / name, out / name)
    return out


if __name__ == "__main__":
    make(*sys.argv[1:3])
