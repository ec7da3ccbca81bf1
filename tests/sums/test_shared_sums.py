"""What is kept with the scores: sums, alike ones taken in one pass, and values that are made once."""

from __future__ import annotations

import pytest
import torch

from xent_metrics import score_tokens
from xent_metrics.sums import exact_sum
from xent_metrics.sums.shared_sums import remember
from xent_metrics.sums.taking import take_sums
from xent_metrics.sums.terms import Binned


@pytest.fixture
def scores(batch):
    return score_tokens(*batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_sums_taken_together_are_those_taken_alone(scores, dtype):
    values = [(scores.nll * factor).to(dtype) for factor in (1, 2, 3)]
    bins = scores.counted.long()
    terms = {f"plain {i}": value for i, value in enumerate(values)}
    terms |= {f"binned {i}": Binned(value, bins, 2) for i, value in enumerate(values)}
    terms |= {"other bins": Binned(values[0], 1 - bins, 2), "two columns": torch.stack([values[0]] * 2, dim=-1)}
    take_sums(scores, terms)
    for key, term in terms.items():
        if isinstance(term, Binned):
            want = exact_sum.exact_sum_by_bin(term.values, term.bins, term.num_bins)
        else:
            want = exact_sum.exact_sum(term)[None]
        assert torch.equal(scores.memo[key], want), key


def test_what_is_remembered_is_made_once(scores):
    made = []
    for _ in range(2):
        found = remember(scores, f"{__name__}: ones", lambda: made.append(1) or torch.ones(3))
        assert found.sum() == 3
    assert made == [1]
