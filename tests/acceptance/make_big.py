"""A BF16 Llama of 1.1 billion pseudo-random weights (2.2 GB), always the same. Needs NumPy.

    make_big.py OUT [LAYERS] [--hidden N] [--tokenizer CHECKPOINT]

25 layers of 44 million weights (2.75 million with --hidden 512) unless told otherwise; the vocabulary and tokenizer are tiny-llama's or
those of another Llama checkpoint: llama.cpp's converter only takes tokenizers that it knows.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from common import FIXTURES
from safetensors_writer import write_shards

HEAD = 64


def bfloat16(values):
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def tensors(layers, hidden, ffn, vocabulary):
    heads = hidden // HEAD
    key_values = heads // 8
    random = np.random.Generator(np.random.SFC64(1100))

    def matrix(name, rows, columns):
        def make():
            return bfloat16(random.standard_normal((rows, columns), dtype=np.float32) / np.float32(columns) ** 0.5)

        return name + ".weight", "BF16", [rows, columns], make

    def gain(name):
        return name + ".weight", "BF16", [hidden], lambda: bfloat16(np.ones(hidden, np.float32))

    yield matrix("model.embed_tokens", vocabulary, hidden)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        yield gain(prefix + "input_layernorm")
        yield gain(prefix + "post_attention_layernorm")
        yield matrix(prefix + "self_attn.q_proj", heads * HEAD, hidden)
        yield matrix(prefix + "self_attn.k_proj", key_values * HEAD, hidden)
        yield matrix(prefix + "self_attn.v_proj", key_values * HEAD, hidden)
        yield matrix(prefix + "self_attn.o_proj", hidden, heads * HEAD)
        yield matrix(prefix + "mlp.gate_proj", ffn, hidden)
        yield matrix(prefix + "mlp.up_proj", ffn, hidden)
        yield matrix(prefix + "mlp.down_proj", hidden, ffn)
    yield gain("model.norm")
    yield matrix("lm_head", vocabulary, hidden)


def main(out, layers, hidden, source):
    config = json.loads((source / "config.json").read_text())
    vocabulary = config["vocab_size"]
    # K-quants need rows of whole super-blocks of 256.
    ffn = -(-hidden * 11 // 4 // 256) * 256
    total = write_shards(out, tensors(layers, hidden, ffn, vocabulary), 500_000_000)
    config |= {
        "hidden_size": hidden, "intermediate_size": ffn, "num_attention_heads": hidden // HEAD,
        "num_key_value_heads": hidden // HEAD // 8, "head_dim": HEAD, "num_hidden_layers": layers, "tie_word_embeddings": False,
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(source / name, out / name)
    print(f"{out}: {total:,} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("layers", type=int, nargs="?", default=25)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--tokenizer", type=Path, default=FIXTURES / "tiny-llama")
    told = parser.parse_args()
    main(told.out, told.layers, told.hidden, told.tokenizer)
