"""Made-up corpora of documents, and their jackknife intervals written out in NumPy."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from xent_metrics import CrossEntropy
from xent_metrics.sums.exact_sum import exact_sum_by_bin

CORPORA = 4000  # of each setting


def packed(y: np.ndarray, x: np.ndarray) -> torch.Tensor:
    """Packed sums of cross entropy, ``(D, rows, 8)``: document d has y_d nats over x_d tokens."""
    states = torch.zeros(len(y), *CrossEntropy().state.shape, dtype=torch.int64)
    for row, values in ((-2, torch.as_tensor(y, dtype=torch.float64)), (-1, torch.as_tensor(x))):
        states[:, row] = exact_sum_by_bin(values, torch.arange(len(y)), len(y))
    return states


def ends(value, leave_one_out, weights):
    """Jackknife intervals of many corpora from values ``(C,)``, leave-one-out values and document weights, ``(C, D)``."""
    size = leave_one_out.shape[1]
    error = np.sqrt((size - 1) * leave_one_out.var(axis=1))
    effective = weights.sum(axis=1) ** 2 / (weights**2).sum(axis=1)
    lean = np.clip(stats.skew(-leave_one_out, axis=1, bias=False) / np.sqrt(size), -0.5, 0.5)
    quantile = np.maximum(stats.t.ppf(0.975, effective - 1), stats.t.ppf(0.975, size - 1) * (1 + 2.56 * lean**2))
    most = np.sqrt(quantile**2 + 0.8) - quantile
    a = np.clip(lean / 3, -most, most)

    def untransformed(quantile):  # Hall's transformation, the other way round
        return np.log(1 + 2 * a * (quantile - a / 2)) / (2 * a)

    return value - untransformed(quantile) * error, value - untransformed(-quantile) * error


def of_ratio(y, x):
    """Each corpus' ratio, its leave-one-out ratios and its document weights, from nats `y` and tokens `x`, ``(C, D)``."""
    nats, tokens = y.sum(axis=1, keepdims=True), x.sum(axis=1, keepdims=True)
    ratio = nats / tokens
    return ratio[:, 0], (nats - y) / (tokens - x), (np.abs(y) + ratio * x) / tokens


LENGTHS = {
    "alike": lambda rng, shape: rng.integers(20, 60, size=shape),
    "exponential": lambda rng, shape: 1 + rng.exponential(60, size=shape).astype(int),
    "lognormal": lambda rng, shape: 1 + (50 * rng.lognormal(size=shape)).astype(int),
}


def corpora(lengths, size):
    """Lengths and nats ``(C, D)``; document means vary around 3 nats per token, and tokens around their document's mean."""
    rng = np.random.default_rng(size)
    x = LENGTHS[lengths](rng, (CORPORA, size))
    return rng, x, x * rng.gamma(9, 1 / 3, size=x.shape) + rng.normal(size=x.shape) * np.sqrt(x)
