"""Which of a distributed sampler's samples are padding, so that an evaluation counts each sample once.

`torch.utils.data.DistributedSampler` gives every rank as many samples: it repeats the first ones at the end. So does the
batch sampler that `accelerator.prepare(loader)` puts into a loader. Either weigh those 0, where all ranks must take as
many steps (FSDP, DDP with buffers), or leave them out, where ranks may differ (`UnpaddedSampler`; for accelerate,
`Accelerator(dataloader_config=DataLoaderConfiguration(even_batches=False))`).

    weights = sample_weights(sampler)       # with accelerate: sample_weights(loader.batch_sampler)
    for batch, weight in zip(loader, weights.split(batch_size)):
        metric.update(model(batch), target, weight=weight[:, None].expand_as(target))
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler

from xent_metrics.errors import InvalidInputError

__all__ = ["UnpaddedSampler", "repeats_samples", "sample_weights"]


def sample_weights(sampler: Any) -> Tensor:
    """1 for each sample that `sampler` gives this rank, 0 for those that are padding, in its order: float32 ``(samples,)``.

    Padding comes last whatever the shuffling and the epoch, so the weights are the same in every epoch; with
    `drop_last=True` there is none. Batches made with the loader's `drop_last=False` take ``.split(batch_size)``.

    Args:
        sampler: a DistributedSampler, or accelerate's BatchSamplerShard over torch's BatchSampler.

    >>> [sample_weights(DistributedSampler(range(5), num_replicas=3, rank=r)).tolist() for r in range(3)]
    [[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]
    """
    if _is_accelerates(sampler):
        return _of_shard(sampler)
    if not isinstance(sampler, DistributedSampler):
        raise InvalidInputError(
            "sample_weights knows the padding of a torch.utils.data.DistributedSampler and of accelerate's BatchSamplerShard "
            f"over torch's own BatchSampler; got {_shown(sampler)}. With accelerate pass `loader.batch_sampler` of the "
            "prepared loader, or let it pad nothing: DataLoaderConfiguration(even_batches=False)"
        )
    return (torch.arange(len(sampler)) < _real_samples(sampler)).float()


class UnpaddedSampler(DistributedSampler[Any]):
    """A DistributedSampler without padding: ranks get all samples once, and differ by at most one.

    >>> [list(UnpaddedSampler(range(5), num_replicas=3, rank=r, shuffle=False)) for r in range(3)]
    [[0, 3], [1, 4], [2]]
    """

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(super().__iter__(), len(self))

    def __len__(self) -> int:
        return _real_samples(self)


def _is_accelerates(sampler: Any) -> bool:
    return type(sampler).__name__ == "BatchSamplerShard" and type(sampler.batch_sampler) is BatchSampler


def _shown(sampler: Any) -> str:
    within = getattr(sampler, "batch_sampler", None)
    return type(sampler).__name__ + (f" over {type(within).__name__}" if within is not None else "")


def _of_shard(shard: Any) -> Tensor:
    """By dealing out positions as accelerate deals out samples: those that come up again, on any process, are padding."""
    batches, processes = shard.batch_sampler, shard.num_processes
    positions = BatchSampler(range(len(batches.sampler)), batches.batch_size, batches.drop_last)
    shards = [
        list(type(shard)(positions, processes, process, shard.split_batches, shard.even_batches))
        for process in range(processes)
    ]
    seen: set[int] = set()
    own: list[float] = []
    for step in itertools.zip_longest(*shards, fillvalue=[]):
        for process, batch in enumerate(step):
            for position in batch:
                if process == shard.process_index:
                    own.append(float(position not in seen))
                seen.add(position)
    return torch.tensor(own)


def repeats_samples(sampler: DistributedSampler[Any]) -> bool:
    """Whether any rank's samples are padding: the same answer on all ranks."""
    return sampler.total_size > len(sampler.dataset) and not isinstance(sampler, UnpaddedSampler)  # type: ignore[arg-type]


def _real_samples(sampler: DistributedSampler[Any]) -> int:
    """How many of this rank's samples, rank, rank + R, rank + 2R …, lie before the dataset's end."""
    samples = len(sampler.dataset)  # type: ignore[arg-type]
    return min(sampler.num_samples, len(range(sampler.rank, samples, sampler.num_replicas)))
