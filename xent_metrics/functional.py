"""Metrics of one batch, as functions: the same definitions, and the same bits, as the metric classes.

    import xent_metrics
    xent_metrics.functional.cross_entropy(logits, target)     # a 0-d float64 tensor

Each function computes what its class does after one `update`. It keeps no state, starts no collective under
torch.distributed, and returns a value without a gradient, on the device of the logits; nan if no row counts.

All functions share these arguments. `logits` are ``(…, V)``; nothing is shifted. `target` holds class ids ``(…)``, and rows
with target `ignore_index` don't count. `weight` ``(…)`` is the weight of each row. Arrays may be tensors, NumPy arrays or
those of any framework with DLPack.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from xent_metrics.metrics import (
    BitsPerByte,
    BrierScore,
    BytePerplexity,
    CrossEntropy,
    ExpectedCalibrationError,
    KLDivergence,
    Perplexity,
    PredictionEntropy,
    TokenAccuracy,
    TopKAccuracy,
)
from xent_metrics.metrics.calibration import Norm
from xent_metrics.metrics.confidence_bins import Binning
from xent_metrics.sums.metric import TokenMetric

__all__ = [
    "bits_per_byte",
    "brier_score",
    "byte_perplexity",
    "cross_entropy",
    "expected_calibration_error",
    "kl_divergence",
    "perplexity",
    "prediction_entropy",
    "token_accuracy",
    "top_k_accuracy",
]


def _value(metric_class: type[TokenMetric], logits: Any, target: Any, weight: Any, **options: Any) -> Tensor:
    metric = metric_class(sync_on_compute=False, **options)
    scores = metric.score(logits, target, weight=weight)
    metric.to(scores.device).update(scores)
    value: Tensor = metric.compute()
    return value


def cross_entropy(
    logits: Any,
    target: Any,
    *,
    ignore_index: int = -100,
    weight: Any = None,
    unit: Literal["nats", "bits"] = "nats",
    label_smoothing: float = 0.0,
    class_weight: Any = None,
) -> Tensor:
    """−Σ_t w_t ln p(target_t) / Σ_t w_t, in nats per token, or in bits with ``unit="bits"``. See `CrossEntropy`.

    `target` may also be distributions ``(…, V)``. With `label_smoothing` or `class_weight` ``(V,)`` the value is the
    training loss of `torch.nn.functional.cross_entropy`.

    Raises:
        InvalidTargetError: a target is neither in [0, V) nor `ignore_index`, or a weight is negative.
        InvalidInputError: shapes or dtypes that can't be scored.
        MetricOptionError: an option has a value that it can't take.

    >>> import torch
    >>> cross_entropy(torch.zeros(2, 3, 8), torch.tensor([[1, 2, 3], [4, 5, -100]]))       # uniform over 8: ln 8
    tensor(2.0794, dtype=torch.float64)
    """
    options = {"unit": unit, "label_smoothing": label_smoothing, "class_weight": class_weight}
    return _value(CrossEntropy, logits, target, weight, ignore_index=ignore_index, **options)


def perplexity(logits: Any, target: Any, *, ignore_index: int = -100, weight: Any = None) -> Tensor:
    """exp(−Σ_t w_t ln p(target_t) / Σ_t w_t), per token. See `Perplexity`.

    Raises:
        InvalidTargetError, InvalidInputError: as for `cross_entropy`.

    >>> import torch
    >>> perplexity(torch.zeros(2, 8), torch.tensor([1, 2]))
    tensor(8.0000, dtype=torch.float64)
    """
    return _value(Perplexity, logits, target, weight, ignore_index=ignore_index)


def bits_per_byte(
    logits: Any, target: Any, *, token_bytes: Any, ignore_index: int = -100, weight: Any = None
) -> Tensor:
    """−Σ_t ln p(target_t) / (ln 2 · Σ_t bytes_t), in bits per byte of UTF-8 text. See `BitsPerByte`.

    `token_bytes` is a tokenizer, or the table ``(V,)`` that `xent_metrics.token_bytes` makes of it. Tokens of 0 bytes
    don't count.

    Raises:
        InvalidTargetError, InvalidInputError: as for `cross_entropy`.
        MetricOptionError: the table doesn't hold whole numbers.
        TokenBytesError: the tokenizer's bytes can't be counted.

    >>> import torch
    >>> bits_per_byte(torch.zeros(2, 4), torch.tensor([1, 3]), token_bytes=torch.tensor([0, 1, 1, 2]))   # 4 bits, 3 bytes
    tensor(1.3333, dtype=torch.float64)
    """
    return _value(BitsPerByte, logits, target, weight, ignore_index=ignore_index, token_bytes=token_bytes)


def byte_perplexity(
    logits: Any, target: Any, *, token_bytes: Any, ignore_index: int = -100, weight: Any = None
) -> Tensor:
    """exp(−Σ_t ln p(target_t) / Σ_t bytes_t), per byte: 2 to the `bits_per_byte`. See `BytePerplexity`.

    Raises:
        InvalidTargetError, InvalidInputError, MetricOptionError, TokenBytesError: as for `bits_per_byte`.

    >>> import torch
    >>> byte_perplexity(torch.zeros(1, 4), torch.tensor([3]), token_bytes=torch.tensor([0, 1, 1, 2]))    # √4
    tensor(2.0000, dtype=torch.float64)
    """
    return _value(BytePerplexity, logits, target, weight, ignore_index=ignore_index, token_bytes=token_bytes)


def token_accuracy(logits: Any, target: Any, *, ignore_index: int = -100, weight: Any = None) -> Tensor:
    """Σ_t [argmax_v logits_t = target_t] / N, a share in [0, 1]; of equal logits the first is the top. See `TokenAccuracy`.

    Raises:
        InvalidTargetError, InvalidInputError: as for `cross_entropy`.

    >>> import torch
    >>> token_accuracy(torch.eye(4)[:, :3], torch.tensor([0, 1, 2, 2]))
    tensor(0.7500, dtype=torch.float64)
    """
    return _value(TokenAccuracy, logits, target, weight, ignore_index=ignore_index)


def top_k_accuracy(logits: Any, target: Any, *, k: int = 5, ignore_index: int = -100, weight: Any = None) -> Tensor:
    """Σ_t [rank of target_t ≤ k] / N, a share in [0, 1]; of equal logits the lower id ranks first. See `TopKAccuracy`.

    Raises:
        InvalidTargetError, InvalidInputError: as for `cross_entropy`.
        MetricOptionError: `k` is not a whole number of at least 1.

    >>> import torch
    >>> top_k_accuracy(torch.tensor([[3.0, 2.0, 1.0]]).expand(3, 3), torch.tensor([0, 1, 2]), k=2)
    tensor(0.6667, dtype=torch.float64)
    """
    return _value(TopKAccuracy, logits, target, weight, ignore_index=ignore_index, k=k)


def brier_score(logits: Any, target: Any, *, ignore_index: int = -100, weight: Any = None) -> Tensor:
    """Σ_t Σ_v (p_v − [v = target_t])² / N, the squared error per token, in [0, 2]. See `BrierScore`.

    Raises:
        InvalidTargetError, InvalidInputError: as for `cross_entropy`.

    >>> import torch
    >>> brier_score(torch.zeros(2, 2), torch.tensor([0, 1]))      # (1/2)² + (1/2)²
    tensor(0.5000, dtype=torch.float64)
    """
    return _value(BrierScore, logits, target, weight, ignore_index=ignore_index)


def prediction_entropy(logits: Any, target: Any, *, ignore_index: int = -100, weight: Any = None) -> Tensor:
    """−Σ_t Σ_v p_v ln p_v / N, in nats per token. Targets only say which rows count. See `PredictionEntropy`.

    Raises:
        InvalidTargetError, InvalidInputError: as for `cross_entropy`.

    >>> import torch
    >>> prediction_entropy(torch.zeros(2, 8), torch.tensor([1, 2]))      # uniform over 8: ln 8
    tensor(2.0794, dtype=torch.float64)
    """
    return _value(PredictionEntropy, logits, target, weight, ignore_index=ignore_index)


def expected_calibration_error(
    logits: Any,
    target: Any,
    *,
    num_bins: int = 15,
    binning: Binning = "width",
    norm: Norm = "l1",
    ignore_index: int = -100,
    weight: Any = None,
) -> Tensor:
    """Σ_b n_b/N · |accuracy_b − confidence_b| over bins of the top-1 probability, in [0, 1]. See `ExpectedCalibrationError`.

    Bins are of equal "width" or of equal "mass"; `norm` is "l1", "l2" or "max".

    Raises:
        InvalidTargetError, InvalidInputError, MetricOptionError: as for `cross_entropy`.

    >>> import torch
    >>> expected_calibration_error(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))   # confidence 0.5, accuracy 0.75
    tensor(0.2500, dtype=torch.float64)
    """
    options = {"num_bins": num_bins, "binning": binning, "norm": norm}
    return _value(ExpectedCalibrationError, logits, target, weight, ignore_index=ignore_index, **options)


def kl_divergence(
    logits: Any,
    other_logits: Any,
    target: Any = None,
    *,
    temperature: float = 1.0,
    ignore_index: int = -100,
    weight: Any = None,
) -> Tensor:
    """Σ_t Σ_v p_v ln(p_v / q_v) / N, in nats per token: P from `logits`, Q from `other_logits`. See `KLDivergence`.

    Both logits are ``(…, V)`` and are divided by `temperature`. Targets, if given, only say which rows count.

    Raises:
        InvalidTargetError, InvalidInputError: as for `cross_entropy`.
        MetricOptionError: the temperature is not positive.

    >>> import math, torch
    >>> kl_divergence(torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]]))     # ½ ln(½/¾) + ½ ln(½/¼)
    tensor(0.1438, dtype=torch.float64)
    """
    pair = logits, other_logits
    return _value(KLDivergence, pair, target, weight, ignore_index=ignore_index, temperature=temperature)
