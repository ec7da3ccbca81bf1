"""What a published metric promises besides the contract, and metrics that break it."""

from __future__ import annotations

import pytest
import torch
from support.broken_metrics import Broken, ReadsAValue

from xent_metrics import PairMetric, RatioMetric, get_metric
from xent_metrics.testing.case import Case
from xent_metrics.testing.contract import check_promise
from xent_metrics.testing.routes import FURTHER_PROMISES


class Told(Broken):
    """Broken, but described.

    Its value is Σ nll / tokens, in nats per token.
    """

    formula = "Σ nll^power + shift / tokens"
    value_unit = "nats per token"
    higher_is_better = False


def check(metric, promise):
    [found] = [p for p in FURTHER_PROMISES if promise in p]
    check_promise(Case.of(metric), found, FURTHER_PROMISES[found])


@pytest.mark.parametrize(
    "metric",
    [
        Told(),
        get_metric("binary_cross_entropy"),
        get_metric("kl_divergence"),
        get_metric("word_perplexity"),
    ],
    ids=lambda metric: metric.name,
)
def test_sound_metrics_keep_them(metric):
    for promise in FURTHER_PROMISES:
        check(metric, promise)


class FromTheLogitsStride(Told):
    """Depends on how the logits came."""

    def score(self, logits, target=None, **options):
        scores = super().score(logits, target, **options)
        return scores.map(lambda x: 2 * x if x is scores.nll else x) if isinstance(logits, torch.Tensor) else scores


class ForwardIsAnother(Told):
    """Returns and keeps another value in forward."""

    def forward(self, scores):
        self.update(scores)
        self.update(scores[:, :1])
        return self.compute()


class LosesItsName(Told):
    """A name in a class that leaves it empty."""

    formula = ""


class NoDirection(RatioMetric):
    """Σ nll / tokens, in nats per token."""

    name = "no_direction"
    formula = "Σ nll / tokens"
    value_unit = "nats per token"

    def per_token(self, scores):
        return scores.nll


class NoDoc(Told):
    pass


@pytest.mark.parametrize(
    ("metric", "promise", "text"),
    [
        (FromTheLogitsStride, "every route", "the values by hidden states and by update"),
        (ForwardIsAnother, "every route", "the value by a forward in each step, as Lightning logs it"),
        (ReadsAValue, "one graph", "ReadsAValue|item|graph|Unsupported"),
        (NoDoc, "docstring", "NoDoc has no docstring of its own"),
        (LosesItsName, "docstring", 'LosesItsName has no formula; set it, as in formula = "Σ nll / tokens"'),
        (NoDirection, "direction", "NoDirection doesn't say which direction is better; set higher_is_better"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_breaks_one_is_named(metric, promise, text):
    with pytest.raises(AssertionError, match=text) as error:
        check(metric(), promise)
    assert " breaks a promise: " in str(error.value)


def test_a_direction_that_is_neither_may_be_said():
    neither = type("Neither", (NoDirection,), {"higher_is_better": None})
    check(neither(), "direction")
    pair = type("OfPairs", (PairMetric, NoDirection), {"pair_score": "kl_divergence"})
    with pytest.raises(AssertionError, match="doesn't say which direction"):
        check(pair(), "direction")
