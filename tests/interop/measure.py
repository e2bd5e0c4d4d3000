"""How far apart two distributions or two tensors are."""

import numpy as np


def divergence(reference, other):
    """Mean Kullback-Leibler divergence in nats of `other` from `reference`: ln p, [positions, vocabulary]."""
    return float((np.exp(reference) * (reference - other)).sum(-1).mean())


def relative_error(reference, other):
    """RMS error over RMS."""
    reference = reference.astype(np.float64)
    return float(np.sqrt(np.mean((reference - other) ** 2) / np.mean(reference**2)))
