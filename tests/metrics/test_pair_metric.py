"""What all metrics of two models share: their arguments, standard errors, nan and chunks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from xent_metrics import get_metric
from xent_metrics.analysis import StandardError
from xent_metrics.errors import InvalidInputError, MetricOptionError
from xent_metrics.scoring.pairs import score_pair
from xent_metrics.scoring.scores import ExtraScore
from xent_metrics.wrappers.standard_error import standard_error

MEANS = ["kl_divergence", "jensen_shannon_divergence", "soft_cross_entropy"]


@pytest.mark.parametrize(
    "name", ["kl_divergence", "probability_change", "rms_probability_change", "log_perplexity_ratio"]
)
def test_two_logits_or_a_pair_have_a_standard_error_over_sequences(pair_batch, name):
    base, other, target = pair_batch
    metric = get_metric(name)
    documents = torch.stack([metric.exact_sums(score_pair(*row)) for row in zip(base, other, target, strict=True)])
    expected = standard_error(metric, documents)
    errors = StandardError(metric), StandardError(metric)
    errors[0].update((base, other), target)
    assert float(errors[0].compute()) == pytest.approx(expected, rel=1e-6)
    assert float(errors[1]((base, other), target)) == pytest.approx(expected, rel=1e-6)  # forward
    without = StandardError(metric)
    without.update(base, other)  # of the base's top-1
    assert float(without.compute()) > 0


def test_nan_is_counted_and_not_hidden(pair_batch):
    base, other, target = pair_batch
    whole = other.clone()
    other[0, 9, 0] = torch.nan
    without = target.clone()
    without[0, 9] = -100
    for name, swapped in itertools.product([*MEANS, "kl_divergence_quantile"], (False, True)):
        metric, rest = get_metric(name), get_metric(name)
        metric.update((other, base) if swapped else (base, other), target)
        rest.update((whole, base) if swapped else (base, whole), without)
        assert metric.value_of(metric.state, nan_policy="omit") == rest.compute()
        with pytest.warns(UserWarning, match="1 of 143 rows gave nan"):
            assert math.isnan(metric.compute())
        assert metric.counts()["nan"] == 1


def test_a_chunk_and_the_whole_give_the_same_bits(pair_batch):
    base, other, target = pair_batch
    whole, parts = get_metric("kl_divergence"), get_metric("kl_divergence")
    whole.update((base, other), target)
    for row in range(3):
        parts.update((base[row], other[row]), target[row])
    assert torch.equal(whole.state, parts.state)


def test_bad_input_says_why():
    base = torch.zeros(2, 4)
    entropy = {"entropy": ExtraScore(lambda log_prob, index: -(log_prob.exp() * log_prob).sum(-1))}
    with pytest.raises(MetricOptionError, match="temperature is positive; got -1"):
        get_metric("kl_divergence", temperature=-1.0)
    for one in (torch.zeros(2, dtype=torch.long), None):
        with pytest.raises(InvalidInputError, match=r"kl_divergence takes update\(logits, other_logits\)"):
            get_metric("kl_divergence").update(base, one)
    with pytest.raises(InvalidInputError, match="kl_divergence compares two models; entropy are scores of one"):
        get_metric("kl_divergence").score(base, base, extra_scores=entropy)
