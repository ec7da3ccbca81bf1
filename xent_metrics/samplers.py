"""Finds the padding of distributed samplers, so that an evaluation counts each sample once.

`torch.utils.data.DistributedSampler` gives every rank equally many samples by repeating the first ones at the end. The
batch sampler that `accelerator.prepare(loader)` puts into a loader does the same. There are two remedies:

- Weight the repeated samples 0. All ranks take equally many steps, as FSDP and DDP with buffers need.
- Don't repeat samples, if ranks may take different numbers of steps: `UnpaddedSampler`, or with accelerate
  `Accelerator(dataloader_config=DataLoaderConfiguration(even_batches=False))`.

    weights = sample_weights(sampler)       # with accelerate: sample_weights(loader.batch_sampler)
    for batch, weight in zip(loader, weights.split(batch_size)):
        metric.update(model(batch), target, weight=weight[:, None].expand_as(target))

Who syncs: nobody. Each rank computes its weights from the sampler's own arithmetic.
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
    """The weights of this rank's samples, in the sampler's order: 1, or 0 for padding; float32 ``(samples,)``.

    Padding comes last whatever the shuffling and the epoch, so every epoch has the same weights. With `drop_last=True`
    there is no padding. If the loader keeps its last batch, ``.split(batch_size)`` gives the weights of each batch.

    Args:
        sampler: a DistributedSampler, or accelerate's BatchSamplerShard over torch's BatchSampler.

    Raises:
        InvalidInputError: a sampler of another class.

    >>> [sample_weights(DistributedSampler(range(5), num_replicas=3, rank=r)).tolist() for r in range(3)]
    [[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]
    """
    if _is_from_accelerate(sampler):
        return _shard_weights(sampler)
    if not isinstance(sampler, DistributedSampler):
        raise InvalidInputError(
            "sample_weights supports torch.utils.data.DistributedSampler and accelerate's BatchSamplerShard over torch's own "
            f"BatchSampler; got {_described(sampler)}. With accelerate pass `loader.batch_sampler` of the prepared loader, "
            "or turn padding off: DataLoaderConfiguration(even_batches=False)"
        )
    return (torch.arange(len(sampler)) < _real_samples(sampler)).float()


class UnpaddedSampler(DistributedSampler[Any]):
    """A DistributedSampler without padding: each sample goes to one rank, and ranks differ by at most one sample.

    >>> [list(UnpaddedSampler(range(5), num_replicas=3, rank=r, shuffle=False)) for r in range(3)]
    [[0, 3], [1, 4], [2]]
    """

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(super().__iter__(), len(self))

    def __len__(self) -> int:
        return _real_samples(self)


def _is_from_accelerate(sampler: Any) -> bool:
    return type(sampler).__name__ == "BatchSamplerShard" and type(sampler.batch_sampler) is BatchSampler


def _described(sampler: Any) -> str:
    inner = getattr(sampler, "batch_sampler", None)
    return type(sampler).__name__ + (f" over {type(inner).__name__}" if inner is not None else "")


def _shard_weights(shard: Any) -> Tensor:
    """The weights of accelerate's samples: deal out positions as accelerate does. Repeated positions are padding."""
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
    """True if any rank has padding; the answer is the same on all ranks."""
    return sampler.total_size > len(sampler.dataset) and not isinstance(sampler, UnpaddedSampler)  # type: ignore[arg-type]


def _real_samples(sampler: DistributedSampler[Any]) -> int:
    """The number of this rank's samples, at positions rank, rank + R, rank + 2R and so on, that are in the dataset."""
    samples = len(sampler.dataset)  # type: ignore[arg-type]
    return min(sampler.num_samples, len(range(sampler.rank, samples, sampler.num_replicas)))
