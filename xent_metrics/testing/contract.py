"""check_metric: one call that checks the contract of a metric, built in or a plugin's.

    from xent_metrics.testing import check_metric

    def test_focal_keeps_the_contract():
        check_metric(FocalCrossEntropy(gamma=2.0))

Each promise of promises.py is checked on made-up scores. The error names the metric and the broken promise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec

from xent_metrics.sums.metric import TokenMetric
from xent_metrics.testing.case import Case, made_up_batch, message
from xent_metrics.testing.promises import PROMISES

__all__ = ["check_metric", "check_promise", "made_up_batch"]


def check_metric(metric: TokenMetric, *, vocab_size: int | None = None, seed: int = 0) -> None:
    """Check that a metric keeps the contract; its own state is not touched.

    It returns nothing if all is well, like the functions of `torch.testing`. It warns of what can't be checked here:
    lm-eval's route, if lm-eval isn't installed.

    Args:
        metric: any `TokenMetric`, built as a user would.
        vocab_size: V of the made-up logits; by default the length of the metric's table of weights or bytes, or 11.
        seed: seeds the made-up scores and partitions.

    Raises:
        AssertionError: a broken promise, with the metric's name and what differs.

    >>> from xent_metrics import get_metric
    >>> check_metric(get_metric("token_accuracy"))
    """
    case = Case.of(metric, vocab_size=vocab_size, seed=seed)
    for promise, check in PROMISES.items():
        check_promise(case, promise, check)
    if not find_spec("lm_eval"):
        warnings.warn("lm-eval isn't installed, so its gather and aggregation weren't checked", stacklevel=2)


def check_promise(case: Case, promise: str, check: Callable[[Case], None]) -> None:
    """Check one promise.

    Raises:
        AssertionError: it is broken; the message names the metric and the promise.
    """
    try:
        check(case)
    except Exception as error:
        raise AssertionError(f"{case.metric.name} breaks a promise: {promise}. {message(error)}") from error
