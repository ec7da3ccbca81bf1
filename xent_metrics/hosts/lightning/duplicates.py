"""Weight 0 for the samples that a DistributedSampler repeats to give every rank equally many.

Lightning puts a DistributedSampler into every loader of a run with several processes. `samplers.sample_weights` says
which samples are repeats; this module maps its weights to the sequences that a step returned. The mapping needs batches
in the sampler's order. If samples are repeated and the order is unknown, every rank raises.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lightning.step_output import StepBatch, per_row
from xent_metrics.samplers import repeats_samples, sample_weights
from xent_metrics.scoring.scores import TokenScores

__all__ = ["without_duplicates"]


def without_duplicates(batch: StepBatch, loaders: Sequence[Any], batch_idx: int) -> StepBatch:
    """The batch with weight 0 for repeated samples; unchanged if the loaders' samplers repeat none.

    Args:
        batch: from `step_output.read`.
        loaders: the loaders that the step draws from.
        batch_idx: the index of the step on this rank.

    Raises:
        InvalidInputError: samples are repeated, and which sequences they became is unknown.
    """
    repeating = [sampler for loader in loaders if (sampler := _repeating(loader)) is not None]
    if not repeating:
        return batch
    sampler = repeating[0]
    rows = batch.rows
    if len(loaders) > 1:
        raise _unknown(sampler, f"each step draws from {len(loaders)} loaders in parallel")
    batches = getattr(loaders[0], "batch_sampler", None)
    if batches is None:  # DataLoader(batch_size=None): a step gets one item of the dataset, a sample or a whole batch
        weight = sample_weights(sampler)[batch_idx].to(rows.device, non_blocking=True).expand(rows.shape)
        return _weighted(batch, rows, weight)
    if not _in_order(batches, sampler):
        raise _unknown(sampler, f"the loader's batch sampler, {type(batches).__name__}, may use an order of its own")
    samples = range(batch_idx * batches.batch_size, min((batch_idx + 1) * batches.batch_size, len(sampler)))
    if len(rows) != len(samples):
        raise _unknown(sampler, f"the step returned {len(rows)} sequences for a batch of {len(samples)} samples")
    if samples.stop < len(sampler):  # repeats come last
        return batch
    return _weighted(batch, rows, sample_weights(sampler)[samples.start :].to(rows.device, non_blocking=True))


def _repeating(loader: Any) -> DistributedSampler[Any] | None:
    """The loader's DistributedSampler, if it repeats samples."""
    batches = getattr(loader, "batch_sampler", None)
    found = (batches, getattr(batches, "sampler", None), getattr(loader, "sampler", None))
    return next((s for s in found if isinstance(s, DistributedSampler) and repeats_samples(s)), None)


def _in_order(batches: Any, sampler: Any) -> bool:
    """True if batches follow the sampler's order: torch's own BatchSampler, or torchdata's resumable copy of it."""
    kind = type(batches)
    torchs = kind is BatchSampler or (kind.__name__ == "BatchSampler" and kind.__module__.startswith("torchdata."))
    return torchs and batches.sampler is sampler


def _unknown(sampler: DistributedSampler[Any], why: str) -> InvalidInputError:
    return InvalidInputError(
        f"the sampler repeats some of {len(sampler.dataset)} samples to give every rank equally many. They must not "  # type: ignore[arg-type]
        f"count twice, but which they are is unknown: {why}. Return logits (B, T, V) and targets (B, T) with one sequence "
        "per sample, from one loader with torch's own BatchSampler; or avoid repeats with "
        "Trainer(use_distributed_sampler=False) and xent_metrics.samplers.UnpaddedSampler; or pass mask_duplicates=False"
    )


def _weighted(batch: StepBatch, rows: Tensor, weight: Tensor) -> StepBatch:
    mask = per_row(weight, rows)
    if isinstance(batch.logits, TokenScores):
        old = batch.logits.weight
        return StepBatch(dataclasses.replace(batch.logits, weight=mask if old is None else old * mask))
    return batch._replace(weight=mask if batch.weight is None else batch.weight * mask)
