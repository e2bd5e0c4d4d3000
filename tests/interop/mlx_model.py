"""An MLX folder running in mlx-lm."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import mlx.core as mx
import numpy as np
from measure import log_softmax
from mlx_lm import load
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import dequantize_model

mx.set_default_device(mx.cpu)


class MlxModel:
    """A folder as mlx-lm loads it, computing in float32 on the CPU so that only the weights differ between formats.

    `unpacked` multiplies with what `mx.dequantize` makes of affine weights, rounded to the type of their scales; the quantized
    product does not round them.
    """

    def __init__(self, folder, unpacked=False):
        self.model, self.tokenizer = load(str(Path(folder)))
        if unpacked:
            self.model = dequantize_model(self.model)
        self.model.set_dtype(mx.float32)

    def log_probabilities(self, ids):
        """ln p of every token after each of `ids`: float64 [len(ids), vocabulary]."""
        return log_softmax(np.array(self.model(mx.array([ids]))[0].astype(mx.float32)))

    def greedy(self, ids, count):
        """The `count` ids that follow `ids` when the likeliest is taken each time, through the key/value cache."""
        cache, feed, out = make_prompt_cache(self.model), list(ids), []
        for _ in range(count):
            logits = self.model(mx.array([feed]), cache=cache)[0, -1]
            feed = [int(mx.argmax(logits))]
            out += feed
        return out
