"""A BF16 Llama of 1.1 billion pseudo-random weights (2.2 GB), always the same. Needs NumPy.

    make_big.py OUT [LAYERS]

25 layers of 44 million weights unless told otherwise; the vocabulary and tokenizer are tiny-llama's.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from common import FIXTURES
from safetensors_writer import write_shards

HIDDEN, FFN, HEADS, KV_HEADS, HEAD, VOCABULARY = 2048, 5632, 32, 4, 64, 2048


def bfloat16(values):
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def tensors(layers):
    random = np.random.Generator(np.random.SFC64(1100))

    def matrix(name, rows, columns):
        def make():
            return bfloat16(random.standard_normal((rows, columns), dtype=np.float32) / np.float32(columns) ** 0.5)

        return name + ".weight", "BF16", [rows, columns], make

    def gain(name):
        return name + ".weight", "BF16", [HIDDEN], lambda: bfloat16(np.ones(HIDDEN, np.float32))

    yield matrix("model.embed_tokens", VOCABULARY, HIDDEN)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        yield gain(prefix + "input_layernorm")
        yield gain(prefix + "post_attention_layernorm")
        yield matrix(prefix + "self_attn.q_proj", HEADS * HEAD, HIDDEN)
        yield matrix(prefix + "self_attn.k_proj", KV_HEADS * HEAD, HIDDEN)
        yield matrix(prefix + "self_attn.v_proj", KV_HEADS * HEAD, HIDDEN)
        yield matrix(prefix + "self_attn.o_proj", HIDDEN, HEADS * HEAD)
        yield matrix(prefix + "mlp.gate_proj", FFN, HIDDEN)
        yield matrix(prefix + "mlp.up_proj", FFN, HIDDEN)
        yield matrix(prefix + "mlp.down_proj", HIDDEN, FFN)
    yield gain("model.norm")
    yield matrix("lm_head", VOCABULARY, HIDDEN)


def main(out, layers=25):
    out, source = Path(out), FIXTURES / "tiny-llama"
    total = write_shards(out, tensors(int(layers)), 500_000_000)
    config = json.loads((source / "config.json").read_text())
    config |= {
        "hidden_size": HIDDEN, "intermediate_size": FFN, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD, "num_hidden_layers": int(layers), "vocab_size": VOCABULARY,
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(source / name, out / name)
    print(f"{out}: {total:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:3])
