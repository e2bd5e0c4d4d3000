"""One mixture-of-experts layer of DeepSeek-R1 at its real shapes and names: 256 experts of three FP8 matrices [2048 × 7168]
with their block scales, multi-head latent attention, 11.5 GB. Needs NumPy.

    r1_layer.py OUT

Attention and four of the experts are pseudo-random, the other experts zero, as holes in the files: under 500 MB on the disk.
Vocabulary and tokenizer are tiny-deepseek's.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from common import FIXTURES
from safetensors_writer import write_shards

HIDDEN, EXPERT, EXPERTS, HEADS, VOCABULARY = 7168, 2048, 256, 128, 2048
NOPE, ROPE, VALUE, KV_RANK, Q_RANK = 128, 64, 128, 512, 1536
RANDOM_EXPERTS = (0, 1, 100, 255)
BLOCK = 128


def tensors():
    random = np.random.Generator(np.random.SFC64(671))

    def bfloat16(*shape):
        return (random.standard_normal(shape, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()

    def codes(rows, columns):
        code = random.integers(0, 256, (rows, columns), np.uint8)
        return np.where(code & 0x7F == 0x7F, 0, code).astype(np.uint8).tobytes()  # no NaN

    def scales(rows, columns):
        return (random.random((rows, columns), np.float32) * np.float32(1e-4) + np.float32(1e-5)).tobytes()

    def float8(name, rows, columns, zero=False):
        blocks = [-(-rows // BLOCK), -(-columns // BLOCK)]
        yield name + ".weight", "F8_E4M3", [rows, columns], lambda: None if zero else codes(rows, columns)
        yield name + ".weight_scale_inv", "F32", blocks, lambda: None if zero else scales(*blocks)

    def mlp(name, zero=False):
        yield from float8(name + ".gate_proj", EXPERT, HIDDEN, zero)
        yield from float8(name + ".up_proj", EXPERT, HIDDEN, zero)
        yield from float8(name + ".down_proj", HIDDEN, EXPERT, zero)

    def plain(name, *shape):
        return name, "BF16", list(shape), lambda: bfloat16(*shape)

    layer = "model.layers.0."
    attention = layer + "self_attn."
    yield plain("model.embed_tokens.weight", VOCABULARY, HIDDEN)
    yield plain(layer + "input_layernorm.weight", HIDDEN)
    yield plain(layer + "post_attention_layernorm.weight", HIDDEN)
    yield from float8(attention + "q_a_proj", Q_RANK, HIDDEN)
    yield plain(attention + "q_a_layernorm.weight", Q_RANK)
    yield from float8(attention + "q_b_proj", HEADS * (NOPE + ROPE), Q_RANK)
    yield from float8(attention + "kv_a_proj_with_mqa", KV_RANK + ROPE, HIDDEN)
    yield plain(attention + "kv_a_layernorm.weight", KV_RANK)
    yield from float8(attention + "kv_b_proj", HEADS * (NOPE + VALUE), KV_RANK)
    yield from float8(attention + "o_proj", HIDDEN, HEADS * VALUE)
    yield plain(layer + "mlp.gate.weight", EXPERTS, HIDDEN)
    yield layer + "mlp.gate.e_score_correction_bias", "F32", [EXPERTS], lambda: random.random(EXPERTS, np.float32).tobytes()
    for expert in range(EXPERTS):
        yield from mlp(f"{layer}mlp.experts.{expert}", zero=expert not in RANDOM_EXPERTS)
    yield from mlp(layer + "mlp.shared_experts")
    yield plain("model.norm.weight", HIDDEN)
    yield plain("lm_head.weight", VOCABULARY, HIDDEN)


def main(out):
    out, source = Path(out), FIXTURES / "tiny-deepseek"
    total = write_shards(out, tensors(), 4_300_000_000)
    config = json.loads((source / "config.json").read_text())
    config |= {
        "hidden_size": HIDDEN, "intermediate_size": 18432, "moe_intermediate_size": EXPERT, "n_routed_experts": EXPERTS,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "num_hidden_layers": 1,
        "first_k_dense_replace": 0, "num_nextn_predict_layers": 0, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
        "qk_nope_head_dim": NOPE, "qk_rope_head_dim": ROPE, "v_head_dim": VALUE, "kv_lora_rank": KV_RANK, "q_lora_rank": Q_RANK,
        "vocab_size": VOCABULARY, "max_position_embeddings": 163840,
        "rope_scaling": {
            "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
            "mscale": 1.0, "mscale_all_dim": 1.0,
        },
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(source / name, out / name)
    print(f"{out}: {total:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
