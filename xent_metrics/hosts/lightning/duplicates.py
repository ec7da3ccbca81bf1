"""The samples that a DistributedSampler repeats so that all ranks get equally many: they are given the weight 0.

Lightning puts a DistributedSampler into every loader of a run with several processes. `samplers.sample_weights` tells
its repeats from its samples; here the weights find their way to the sequences that a step gave. That needs batches in
the sampler's order: what batches in another order is refused where samples are repeated, on all ranks alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lightning.step_output import Batch, per_row
from xent_metrics.samplers import repeats_samples, sample_weights
from xent_metrics.scoring.scores import TokenScores

__all__ = ["loaders_of", "without_duplicates"]


def loaders_of(trainer: Any) -> list[list[Any]]:
    """By `dataloader_idx`, the loader that Lightning draws from, or the several that it draws from in parallel."""
    combined = trainer._active_loop._combined_loader  # `trainer.val_dataloaders` may still be an earlier run's
    return [[loader] for loader in combined.flattened] if combined._mode == "sequential" else [combined.flattened]


def without_duplicates(batch: Batch, loaders: Sequence[Any], batch_idx: int) -> Batch:
    """The batch with weight 0 for repeated samples; as it is where the loaders' samplers repeat none."""
    repeating = [sampler for loader in loaders if (sampler := _repeating(loader)) is not None]
    if not repeating:
        return batch
    sampler = repeating[0]
    rows = batch.rows
    if len(loaders) > 1:
        raise _unknown(sampler, f"the step draws from {len(loaders)} loaders in parallel")
    batches = getattr(loaders[0], "batch_sampler", None)
    if batches is None:  # DataLoader(batch_size=None): a step has one of the dataset's items, a sample or a batch
        weight = sample_weights(sampler)[batch_idx].to(rows.device).expand(rows.shape)
        return _weighted(batch, rows, weight)
    if not _in_order(batches, sampler):
        raise _unknown(
            sampler, f"the loader's batch sampler, {type(batches).__name__}, may batch in an order of its own"
        )
    samples = range(batch_idx * batches.batch_size, min((batch_idx + 1) * batches.batch_size, len(sampler)))
    if len(rows) != len(samples):
        raise _unknown(sampler, f"the step gave {len(rows)} sequences for a batch of {len(samples)} samples")
    if samples.stop < len(sampler):  # repeats come last
        return batch
    return _weighted(batch, rows, sample_weights(sampler)[samples.start :].to(rows.device))


def _repeating(loader: Any) -> DistributedSampler[Any] | None:
    """The loader's DistributedSampler, if it repeats samples."""
    batches = getattr(loader, "batch_sampler", None)
    found = (batches, getattr(batches, "sampler", None), getattr(loader, "sampler", None))
    return next((s for s in found if isinstance(s, DistributedSampler) and repeats_samples(s)), None)


def _in_order(batches: Any, sampler: Any) -> bool:
    """Whether batches are the sampler's samples in its order: torch's class, or the resumable copy of it in torchdata."""
    kind = type(batches)
    torchs = kind is BatchSampler or (kind.__name__ == "BatchSampler" and kind.__module__.startswith("torchdata."))
    return torchs and batches.sampler is sampler


def _unknown(sampler: DistributedSampler[Any], why: str) -> InvalidInputError:
    return InvalidInputError(
        f"the sampler repeats samples to deal {len(sampler.dataset)} out evenly, and they must not count twice; "  # type: ignore[arg-type]
        f"but {why}, so which they are is unknown. Give logits (B, T, V) and targets (B, T), one sequence a sample, of one "
        "loader with torch's own BatchSampler; or keep samples from being repeated "
        "(Trainer(use_distributed_sampler=False) and xent_metrics.samplers.UnpaddedSampler), or mask_duplicates=False"
    )


def _weighted(batch: Batch, rows: Tensor, weight: Tensor) -> Batch:
    mask = per_row(weight, rows)
    if isinstance(batch.logits, TokenScores):
        old = batch.logits.weight
        return Batch(dataclasses.replace(batch.logits, weight=mask if old is None else old * mask))
    return batch._replace(weight=mask if batch.weight is None else batch.weight * mask)
