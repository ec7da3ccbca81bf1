"""The padding of accelerate's loaders doesn't count: a loop in two processes, and every way of dealing samples out."""

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from support import accelerate_jobs as jobs
from support.distributed import run
from support.lightning import Sequences, table
from torch.utils.data import BatchSampler, SequentialSampler

from xent_metrics import TokenMetricCollection
from xent_metrics.errors import InvalidInputError
from xent_metrics.samplers import sample_weights

LOOPS = [(11, 3, {}), (11, 4, {"split_batches": True}), (11, 3, {"even_batches": False}), (1, 3, {})]


def test_padding_does_not_count():
    for found in run(2, jobs.looped, LOOPS):
        for (samples, _, options), loop in zip(LOOPS, found, strict=True):
            data, alone = Sequences(samples), TokenMetricCollection(jobs.NAMES)
            alone.update(table()[data.ids[:, :-1]], data.target)
            want = jobs.of(alone)
            assert {name: loop[name] for name in want} == want
            assert (loop["without weights"] > want["counted"]) == options.get("even_batches", True)
            assert "pass `loader.batch_sampler` of the prepared loader, or turn padding off" in loop["refused"]
            assert "even_batches=False" in loop["refused"]


@pytest.mark.parametrize("even_batches", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("processes", "split"), [(1, False), (2, True), (3, False), (4, False), (4, True)])
@pytest.mark.parametrize("samples", [1, 2, 4, 7, 16, 21])
def test_every_sample_has_the_weight_one_once(samples, processes, split, drop_last, even_batches):
    batches = BatchSampler(SequentialSampler(range(samples)), 4, drop_last)
    shards = [BatchSamplerShard(batches, processes, process, split, even_batches) for process in range(processes)]
    dealt = [[sample for batch in shard for sample in batch] for shard in shards]
    weights = [sample_weights(shard) for shard in shards]
    counted = [
        sample for own, weight in zip(dealt, weights, strict=True) for sample in torch.tensor(own)[weight > 0].tolist()
    ]
    assert [len(weight) for weight in weights] == [len(own) for own in dealt]
    assert sorted(counted) == sorted({sample for own in dealt for sample in own})


def test_another_batch_sampler_is_refused():
    with pytest.raises(InvalidInputError, match=r"got BatchSamplerShard over Backwards.*even_batches=False"):
        sample_weights(BatchSamplerShard(type("Backwards", (BatchSampler,), {})(range(3), 2, False), 2, 0))
