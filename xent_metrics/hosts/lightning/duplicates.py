"""The samples that a DistributedSampler repeats so that all ranks get equally many: they are given the weight 0.

Lightning puts a DistributedSampler into every loader of a run with several processes. `samplers.sample_weights` tells
its repeats from its samples; here the weights find their way to the sequences that a step gave.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from ...errors import InvalidInputError
from ...samplers import sample_weights
from ...scores import TokenScores
from .step_output import Batch, per_row

__all__ = ["loaders_of", "without_duplicates"]


def loaders_of(trainer: Any) -> list[Any]:
    """The loaders that Lightning runs through one after another; None for several that it draws from in parallel."""
    combined = trainer._active_loop._combined_loader  # `trainer.val_dataloaders` may still be an earlier run's
    loaders: list[Any] = combined.flattened
    return loaders if combined._mode == "sequential" or len(loaders) == 1 else [None]


def without_duplicates(batch: Batch, loader: Any, batch_idx: int) -> Batch:
    """The batch with weight 0 for repeated samples; as it is where the loader's sampler repeats none."""
    batches = loader.batch_sampler if isinstance(loader, DataLoader) else None
    sampler = batches.sampler if isinstance(batches, BatchSampler) else None
    if not isinstance(sampler, DistributedSampler) or sampler.total_size <= len(sampler.dataset):  # type: ignore[arg-type]
        return batch
    size: int = batches.batch_size  # type: ignore[union-attr]
    samples = range(batch_idx * size, min((batch_idx + 1) * size, len(sampler)))
    rows = batch.logits.nll if isinstance(batch.logits, TokenScores) else batch.target
    if len(rows) != len(samples):
        raise InvalidInputError(
            f"the sampler repeats samples to deal {len(sampler.dataset)} out evenly, and they must not count twice; "  # type: ignore[arg-type]
            f"but the step gave {len(rows)} sequences for a batch of {len(samples)} samples, so which they are is unknown. "
            "Give logits (B, T, V) and targets (B, T), one sequence a sample; or keep samples from being repeated "
            "(Trainer(use_distributed_sampler=False) and xent_metrics.samplers.UnpaddedSampler), or mask_duplicates=False"
        )
    if samples.stop < len(sampler):  # repeats come last
        return batch
    return _weighted(batch, rows, sample_weights(sampler)[samples.start :].to(rows.device))


def _weighted(batch: Batch, rows: Tensor, weight: Tensor) -> Batch:
    mask = per_row(weight, rows)
    if isinstance(batch.logits, TokenScores):
        old = batch.logits.weight
        return Batch(dataclasses.replace(batch.logits, weight=mask if old is None else old * mask))
    return batch._replace(weight=mask if batch.weight is None else batch.weight * mask)
