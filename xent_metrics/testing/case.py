"""Made-up data for a metric, on which its contract is checked."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from xent_metrics.metrics.pair_metric import PairMetric
from xent_metrics.scoring.scores import RowKind, TokenScores
from xent_metrics.sums.metric import TokenMetric

__all__ = ["BATCH", "Case", "given_to", "made_up_batch", "message", "own_scores", "same", "with_host_fields"]

BATCH, _LENGTH, _VOCAB_SIZE = 5, 8, 11


@dataclass(frozen=True)
class Case:
    """A metric, and made-up data that suit it.

    Attributes:
        metric: pristine: checks update copies.
        logits: ``(B, T, V)``, or ``(B, T)`` for binary scores.
        target: ``(B, T)``, some of them ignored.
        first_scores: ``(B, T)``, with every field.
        generator: of random numbers.
    """

    metric: TokenMetric
    logits: Tensor
    target: Tensor
    first_scores: TokenScores
    generator: torch.Generator

    @classmethod
    def of(cls, metric: TokenMetric, *, vocab_size: int | None = None, seed: int = 0) -> Case:
        """Made-up data for a copy of the metric.

        Raises:
            AssertionError: the metric can't take them.
        """
        metric = copy.deepcopy(metric)
        metric.reset()
        generator = torch.Generator().manual_seed(seed)
        try:
            logits, target = made_up_batch(metric, vocab_size=vocab_size, generator=generator)
            return cls(metric, logits, target, own_scores(metric, logits, target), generator)
        except Exception as error:
            raise AssertionError(f"{metric.name} can't take made-up logits and targets: {message(error)}") from error

    @property
    def scores(self) -> TokenScores:
        """Scores without any sums taken yet, so that the metric is asked for them each time."""
        return replace(self.first_scores)

    def new(self) -> TokenMetric:
        """A copy of the metric, without data."""
        return copy.deepcopy(self.metric)

    def used(self) -> TokenMetric:
        """A copy of the metric, updated with the scores."""
        metric = self.new()
        metric.update(self.scores)
        return metric


def made_up_batch(
    metric: TokenMetric, *, vocab_size: int | None = None, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Logits ``(5, 8, V)`` and targets ``(5, 8)`` that suit the metric; about a fifth of the targets are ignored.

    For a metric of binary scores the logits, or probabilities, are those of the class 1 alone, ``(5, 8)``.
    """
    binary = metric.scoring_options().get("binary")
    if binary:
        vocab_size = 2
    if vocab_size is None:
        tables = [t for t in (*metric.scoring_options().values(), *metric.buffers()) if isinstance(t, Tensor)]
        vocab_size = next((len(table) for table in tables if table.ndim == 1), _VOCAB_SIZE)
    logits = 2 * torch.randn(BATCH, _LENGTH, vocab_size, generator=generator)
    chance = torch.rand(2, BATCH, _LENGTH, generator=generator)
    target = torch.randint(vocab_size, (BATCH, _LENGTH), generator=generator)
    target = torch.where(chance[0] < 0.5, logits.argmax(-1), target)  # hits and misses
    ignored = chance[1] < 0.2
    ignored[0, 0], ignored[0, 1] = True, False
    if binary:
        logits = logits[..., 1] - logits[..., 0]
    if binary == "probabilities":
        logits = logits.sigmoid()
    return logits, torch.where(ignored, metric.ignore_index, target)


def own_scores(metric: TokenMetric, logits: Tensor, target: Tensor, **options: Any) -> TokenScores:
    """The metric's own scores of the batch, with the fields that a host would add, of a row kind that it takes."""
    return with_host_fields(metric, metric.score(given_to(metric, logits), target, **options))


def given_to(metric: TokenMetric, logits: Tensor) -> Any:
    """What the metric is updated with: the logits, or a pair of them."""
    return (logits, logits / 2 + logits.flip(-1)) if isinstance(metric, PairMetric) else logits


def with_host_fields(metric: TokenMetric, scores: TokenScores) -> TokenScores:
    """The scores with the fields that a host would add, of a row kind that the metric takes."""
    row_kind: RowKind = "token" if "token" in metric.row_kinds else min(metric.row_kinds)
    rows = torch.arange(scores.nll.numel(), device=scores.device).reshape(scores.nll.shape)
    return replace(scores, num_bytes=rows % 5, num_words=rows % 3, weight=(rows % 4 + 1) / 4, row_kind=row_kind)


def same(got: Tensor, want: Tensor, what: str) -> None:
    """Raise an AssertionError unless both have the same bits."""
    assert torch.equal(got, want), f"{what} differ: {got} and {want}"


def message(error: Exception) -> str:
    """The text of an error; its type too, unless it is an AssertionError."""
    return str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
