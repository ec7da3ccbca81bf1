"""A thousand ranks and 10^12 tokens, by simulation: what goes over the wire, and that no bit is lost."""

from __future__ import annotations

import random
from fractions import Fraction
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from support.distributed import fake_ranks
from torch.distributed.tensor.debug import CommDebugMode

from xent_metrics import CrossEntropy, TokenMetricCollection, from_loglikelihoods
from xent_metrics.sums import exact_sum

RANKS = 1024
FIVE = [
    "cross_entropy",
    "perplexity",
    "token_accuracy",
    "expected_calibration_error",
    "calibration_weighted_cross_entropy",
]


@pytest.fixture
def thousand_ranks():
    """This process as rank 7 of 1,024, of which the others have no data; yields the sizes of its all_reduces."""
    sizes: list[int] = []
    made = dist.all_reduce

    def all_reduce(tensor, *args, **kwargs):
        sizes.append(tensor.numel() * tensor.element_size())
        made(tensor, *args, **kwargs)
        tensor[[0, -1]] *= RANKS
        tensor[[0, -1], 1:3] = torch.tensor([sum(range(RANKS)), sum(rank**2 for rank in range(RANKS))])

    with fake_ranks(7, RANKS), mock.patch.object(dist, "all_reduce", all_reduce):
        yield sizes


def test_a_compute_is_one_all_reduce_of_a_few_kilobytes(thousand_ranks):
    metrics = TokenMetricCollection(FIVE)
    metrics.update(torch.randn(64, 11), torch.randint(11, (64,)))
    with CommDebugMode() as mode:
        together = metrics.compute()
        assert thousand_ranks == [16384]
        for name, metric in metrics.members().items():  # as log_dict does
            assert metric.compute() == together[name]
        assert thousand_ranks == [16384] * 2
        assert mode.get_total_counts() == 2
    metrics.persistent(True)
    assert metrics.state_dict()["perplexity.sums_origin"].tolist() == [0, 7, RANKS]


def test_ten_to_the_twelfth_tokens_on_a_thousand_ranks_are_exact():
    rng, metric = random.Random(0), CrossEntropy()
    batches = [2.0 ** (torch.rand(16) * 30 - 25) for _ in range(RANKS)]  # each nll from 3e-8 to 32 nats
    times = [rng.randrange(2**25, 2**27) for _ in range(RANKS)]
    sums = [metric.exact_sums(from_loglikelihoods(-nll, row_kind="token")) for nll in batches]
    states = repeated(torch.stack(sums), torch.tensor(times))
    nats = sum(n * Fraction(x) for n, nll in zip(times, batches, strict=True) for x in nll.tolist())
    tokens = 16 * sum(times)
    assert tokens > 10**12
    total = exact_sum.merge(states)
    assert exact_sum.to_fraction(total[3]) == nats
    assert exact_sum.to_fraction(total[4]) == exact_sum.to_fraction(total[0]) == tokens
    assert abs(Fraction(metric.value_of(total).item()) * tokens / nats - 1) < Fraction(3, 2**53)
    for seed in range(3):
        assert torch.equal(tree(states, random.Random(seed)), total)


def repeated(states, times):
    """Each of `states` added up as many `times`, by doubling."""
    total = torch.zeros_like(states)
    for bit in reversed(range(27)):
        total = exact_sum.carry(2 * total + states * (times >> bit & 1)[:, None, None])
    return total


def tree(states, rng):
    """Merged in a random order, in groups of random size, as a network may."""
    states = rng.sample(list(states), len(states))
    while len(states) > 1:
        size = rng.randrange(2, 40)
        states = [exact_sum.merge(torch.stack(states[i : i + size])) for i in range(0, len(states), size)]
    return states[0]


def test_one_all_reduce_adds_65536_ranks_without_a_wrap():
    ranks, lower = 2**16, [2**32 - 1] * 3
    row = torch.tensor([[*lower, 2**29, 0, 0, 0, 0]])
    total = exact_sum.carry(row * ranks)
    assert exact_sum.to_fraction(total[0]) == ranks * exact_sum.to_fraction(row[0])
    assert not exact_sum.overflowed(total)
    assert exact_sum.overflowed(exact_sum.carry(torch.tensor([[*lower, 2**46, 0, 0, 0, 0]]) * ranks))
