"""How far apart two distributions or two tensors are."""

import numpy as np


def divergence(reference, other):
    """Mean Kullback-Leibler divergence in nats of `other` from `reference`: ln p, [positions, vocabulary]."""
    return float((np.exp(reference) * (reference - other)).sum(-1).mean())


def log_softmax(logits):
    """ln p, in float64, of logits [..., vocabulary]; makes the probabilities of a ln p that is a little off sum to 1."""
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def relative_error(reference, other):
    """RMS error over RMS."""
    reference = reference.astype(np.float64)
    return float(np.sqrt(np.mean((reference - other) ** 2) / np.mean(reference**2)))
