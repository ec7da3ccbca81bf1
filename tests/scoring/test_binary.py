"""A logit or a probability of class 1 becomes two classes, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from xent_metrics import score_tokens
from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring.binary import two_classes


def test_a_logit_and_its_probability_have_the_same_loss():
    logits, target = torch.linspace(-30, 30, 13, dtype=torch.float64), torch.arange(13) % 2
    by_logit = score_tokens(logits, target, binary="logits")
    by_probability = score_tokens(logits.sigmoid(), target, binary="probabilities")
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, target.double(), reduction="none")
    torch.testing.assert_close(by_logit.nll, expected, rtol=1e-14, atol=1e-14)
    moderate = logits.abs() < 16  # beyond, 1 − p has lost digits before it gets here
    torch.testing.assert_close(by_probability.nll[moderate], expected[moderate], rtol=1e-8, atol=1e-14)


def test_certain_forecasts_and_those_that_are_no_probability():
    nll = score_tokens(
        torch.tensor([1.0, 1.0, 0.0, 1.5, -0.5]), torch.tensor([1, 0, 1, 1, 1]), binary="probabilities"
    ).nll
    assert nll[:3].tolist() == [0.0, math.inf, math.inf]
    assert nll[3:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_class_ids_stay_class_ids(dtype):
    _, target = two_classes(torch.zeros(2), torch.tensor([0, 1]).to(dtype), "logits")
    assert target.tolist() == [0, 1]
    assert not target.is_floating_point()


def test_float_targets_become_distributions():
    logits, target = two_classes(torch.tensor([0.5]), torch.tensor([0.25]), "probabilities")
    assert target.tolist() == [[0.75, 0.25]]
    assert logits.tolist() == [[math.log(0.5), math.log(0.5)]]


@pytest.mark.parametrize(
    ("forecast", "given", "message"),
    [
        (torch.zeros(2), "odds", "binary is 'logits' or 'probabilities'; got 'odds'"),
        (
            torch.zeros(2, 2),
            "logits",
            r"expected binary logits as floats .* shape \(2,\); got \(2, 2\) of torch.float32",
        ),
        (torch.zeros(2).long(), "probabilities", r"expected binary probabilities .*got \(2,\) of torch.int64"),
    ],
)
def test_what_is_no_binary_forecast_says_why(forecast, given, message):
    with pytest.raises(InvalidInputError, match=message):
        two_classes(forecast, torch.tensor([0, 1]), given)
