"""The scores of a pair of models: limits, and input that can't be scored."""

from __future__ import annotations

import math

import pytest
import torch

from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring.pairs import score_pair


def test_impossible_tokens_are_infinitely_far_one_way_and_ln_2_the_other():
    left, right = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-torch.inf, 0.0]])
    found = score_pair(left, right).extra_scores
    assert found["kl_divergence"].item() == math.inf
    assert found["jensen_shannon_divergence"].item() == pytest.approx(math.log(2))
    assert score_pair(left, left).extra_scores["kl_divergence"].item() == 0.0


def test_bad_input_says_why():
    base = torch.zeros(2, 4)
    with pytest.raises(InvalidInputError, match=r"got \(2, 4\) on cpu and \(2, 5\).*share their vocabulary"):
        score_pair(base, torch.zeros(2, 5))
    with pytest.raises(InvalidInputError, match="temperature is positive; got 0"):
        score_pair(base, base, temperature=0)
