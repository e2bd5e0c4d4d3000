"""Calibration windows as quality.py's PROTOCOLS cut them: the text's tokens, without special ones, in `chunks` windows of `context`."""

import json
from pathlib import Path

from tokenizers import Tokenizer

# name: (calibration chunks, context)
PROTOCOLS = {"smollm2": (64, 512), "tiny-llama": (128, 256)}


def windows(checkpoint, text, chunks, context):
    """[chunks][context] token ids."""
    words = Tokenizer.from_file(str(Path(checkpoint) / "tokenizer.json"))
    ids = words.encode(Path(text).read_text(), add_special_tokens=False).ids
    if len(ids) < chunks * context:
        raise SystemExit(f"{text} has {len(ids)} tokens, fewer than {chunks} x {context}")
    return [ids[at * context : (at + 1) * context] for at in range(chunks)]


def vocabulary(checkpoint):
    config = json.loads((Path(checkpoint) / "config.json").read_text())
    return config.get("text_config", config)["vocab_size"]
