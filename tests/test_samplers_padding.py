"""The padding of distributed samplers, which must not count."""

from __future__ import annotations

import pytest
import torch
from support import distributed_jobs as jobs
from support.distributed import run
from torch.utils.data import DistributedSampler, RandomSampler

from xent_metrics import TokenMetricCollection
from xent_metrics.errors import InvalidInputError
from xent_metrics.samplers import UnpaddedSampler, sample_weights


@pytest.mark.parametrize(("samples", "shuffle"), [(10, True), (7, False), (2, False)])
def test_padding_does_not_count(samples, shuffle):
    metrics = TokenMetricCollection(["cross_entropy", "token_accuracy", "expected_calibration_error"])
    for _ in range(2):
        for logits, target in jobs.sample_data(samples):
            metrics.update(logits, target)
    alone = jobs.sampled_summary(metrics)
    for padded, unpadded in run(3, jobs.sampled, samples, shuffle):
        assert padded == alone
        assert unpadded == alone


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("replicas", [1, 3, 4, 11])
def test_weights_are_one_for_the_first_of_each_sample(replicas, drop_last):
    options = {"num_replicas": replicas, "shuffle": True, "seed": 3, "drop_last": drop_last}
    samplers = [DistributedSampler(range(10), rank=rank, **options) for rank in range(replicas)]
    unpadded = [UnpaddedSampler(range(10), rank=rank, **options) for rank in range(replicas)]
    real = [i for s in samplers for i, weight in zip(s, sample_weights(s), strict=True) if weight]
    assert len(real) == len(set(real)) == (10 // replicas * replicas if drop_last else 10)
    assert [i for s in unpadded for i in s] == real
    assert all(torch.equal(sample_weights(s), torch.ones(len(list(s)))) for s in unpadded)


def test_other_samplers_are_refused():
    with pytest.raises(InvalidInputError, match=r"torch.utils.data.DistributedSampler and .*; got RandomSampler\."):
        sample_weights(RandomSampler(range(3)))
