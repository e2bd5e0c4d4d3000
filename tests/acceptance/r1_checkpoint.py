"""DeepSeek-R1's checkpoint at its real names, types and shapes, with holes for most of its weights. Needs NumPy.

    r1_checkpoint.py layer OUT [EXPERTS]
    r1_checkpoint.py whole OUT

`layer` is one mixture-of-experts layer, 11.6 GB: attention, shared expert and four of the 256 routed experts are pseudo-random,
the other experts zero; under 500 MB of the disk. With EXPERTS (a multiple of 8) it has that many experts, and none is zero: 44 million
weights each, for measuring speed. Vocabulary and tokenizer are tiny-deepseek's.

`whole` is all 91,991 tensors in 688,574,839,360 bytes, every weight a hole, for `--dry-run`: 21 MB of the disk. The tokenizer is
tiny-deepseek's, so the file that a dry run shows is some megabytes smaller than with R1's own.
"""

import json
import shutil
import sys
from pathlib import Path
from statistics import NormalDist

import numpy as np
from common import FIXTURES
from safetensors_writer import write_shards

HIDDEN, DENSE, EXPERT, EXPERTS, HEADS = 7168, 18432, 2048, 256, 128
NOPE, ROPE, VALUE, KV_RANK, Q_RANK = 128, 64, 128, 512, 1536
LAYERS, DENSE_LAYERS, VOCABULARY = 61, 3, 129280
WHOLE_TENSORS, WHOLE_BYTES = 91_991, 688_574_839_360
RANDOM_EXPERTS = (0, 1, 100, 255)
BLOCK = 128


def normal_codes():
    """65,536 E4M3 codes spread as normal weights with a deviation of 100 are."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    quantile = np.array([100 * NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(65536)])
    nearest = np.searchsorted((values[1:] + values[:-1]) / 2, np.abs(quantile))
    return (nearest | np.where(quantile < 0, 0x80, 0)).astype(np.uint8)


NORMAL = normal_codes()


class Weights:
    """Pseudo-random bytes of each type, or none: a tensor is (name, type, shape, how to make its bytes)."""

    def __init__(self, holes):
        self.random = None if holes else np.random.Generator(np.random.SFC64(671))

    def tensor(self, name, dtype, shape, make):
        return name, dtype, shape, make if self.random else lambda: None

    def plain(self, name, *shape):
        def make():
            values = self.random.standard_normal(shape, dtype=np.float32)
            return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()

        return self.tensor(name + ".weight", "BF16", list(shape), make)

    def bias(self, name, count):
        return self.tensor(name, "F32", [count], lambda: self.random.random(count, np.float32).tobytes())

    def float8(self, name, rows, columns, zero=False):
        blocks = [-(-rows // BLOCK), -(-columns // BLOCK)]

        def codes():
            return NORMAL[self.random.integers(0, len(NORMAL), (rows, columns), np.uint16)].tobytes()

        def scales():
            return (self.random.random(blocks, np.float32) * np.float32(1e-4) + np.float32(1e-5)).tobytes()

        none = lambda: None  # noqa: E731
        yield self.tensor(name + ".weight", "F8_E4M3", [rows, columns], none if zero else codes)
        yield self.tensor(name + ".weight_scale_inv", "F32", blocks, none if zero else scales)

    def mlp(self, name, width, zero=False):
        yield from self.float8(name + ".gate_proj", width, HIDDEN, zero)
        yield from self.float8(name + ".up_proj", width, HIDDEN, zero)
        yield from self.float8(name + ".down_proj", HIDDEN, width, zero)

    def layer(self, number, dense, random_experts, experts=EXPERTS):
        prefix = f"model.layers.{number}"
        attention = prefix + ".self_attn."
        yield self.plain(prefix + ".input_layernorm", HIDDEN)
        yield self.plain(prefix + ".post_attention_layernorm", HIDDEN)
        yield from self.float8(attention + "q_a_proj", Q_RANK, HIDDEN)
        yield self.plain(attention + "q_a_layernorm", Q_RANK)
        yield from self.float8(attention + "q_b_proj", HEADS * (NOPE + ROPE), Q_RANK)
        yield from self.float8(attention + "kv_a_proj_with_mqa", KV_RANK + ROPE, HIDDEN)
        yield self.plain(attention + "kv_a_layernorm", KV_RANK)
        yield from self.float8(attention + "kv_b_proj", HEADS * (NOPE + VALUE), KV_RANK)
        yield from self.float8(attention + "o_proj", HIDDEN, HEADS * VALUE)
        if dense:
            yield from self.mlp(prefix + ".mlp", DENSE)
            return
        yield self.plain(prefix + ".mlp.gate", experts, HIDDEN)
        yield self.bias(prefix + ".mlp.gate.e_score_correction_bias", experts)
        for expert in range(experts):
            yield from self.mlp(f"{prefix}.mlp.experts.{expert}", EXPERT, zero=expert not in random_experts)
        yield from self.mlp(prefix + ".mlp.shared_experts", EXPERT)

    def outside(self, vocabulary):
        yield self.plain("model.embed_tokens", vocabulary, HIDDEN)
        yield self.plain("model.norm", HIDDEN)
        yield self.plain("lm_head", vocabulary, HIDDEN)


def whole():
    weights = Weights(holes=True)
    yield from weights.outside(VOCABULARY)
    for number in range(LAYERS + 1):
        yield from weights.layer(number, number < DENSE_LAYERS, ())
    prefix = f"model.layers.{LAYERS}."  # multi-token prediction
    yield weights.plain(prefix + "enorm", HIDDEN)
    yield weights.plain(prefix + "hnorm", HIDDEN)
    yield weights.plain(prefix + "eh_proj", HIDDEN, 2 * HIDDEN)
    yield weights.plain(prefix + "embed_tokens", VOCABULARY, HIDDEN)
    yield weights.plain(prefix + "shared_head.norm", HIDDEN)
    yield weights.plain(prefix + "shared_head.head", VOCABULARY, HIDDEN)


def main(what, out, experts=None):
    out, source = Path(out), FIXTURES / "tiny-deepseek"
    random_experts = range(int(experts)) if experts else RANDOM_EXPERTS
    experts = int(experts or EXPERTS)
    config = json.loads((source / "config.json").read_text())
    if what == "whole":
        tensors = list(whole())
        config |= {"num_hidden_layers": LAYERS, "first_k_dense_replace": DENSE_LAYERS, "num_nextn_predict_layers": 1, "vocab_size": VOCABULARY}
    else:
        weights = Weights(holes=False)
        tensors = [*weights.outside(config["vocab_size"]), *weights.layer(0, False, random_experts, experts)]
        config |= {"num_hidden_layers": 1, "first_k_dense_replace": 0, "num_nextn_predict_layers": 0}
    total = write_shards(out, tensors, 4_300_000_000)
    if what == "whole" and (len(tensors), total) != (WHOLE_TENSORS, WHOLE_BYTES):
        raise SystemExit(f"{len(tensors)} tensors of {total} bytes are not DeepSeek-R1's")
    config |= {
        "hidden_size": HIDDEN, "intermediate_size": DENSE, "moe_intermediate_size": EXPERT, "n_routed_experts": experts,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "qk_nope_head_dim": NOPE, "qk_rope_head_dim": ROPE, "v_head_dim": VALUE,
        "kv_lora_rank": KV_RANK, "q_lora_rank": Q_RANK, "max_position_embeddings": 163840,
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
    main(*sys.argv[1:4])
