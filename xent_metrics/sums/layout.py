"""Which rows of a packed state hold which sum: three counts of rows first, then the sums in the order of their names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums import exact_sum
from xent_metrics.sums.terms import Binned, Terms

__all__ = ["COUNTS", "StateLayout", "count_terms"]

#: Counts that are part of every metric's state.
COUNTS = ("counted", "ignored", "invalid_targets")


def count_terms(scores: TokenScores) -> dict[str, Tensor]:
    """The terms of `COUNTS`, by name."""
    invalid = torch.zeros_like(scores.counted) if scores.invalid is None else scores.invalid
    return dict(zip(COUNTS, (scores.counted, scores.uncounted, invalid), strict=True))


@dataclass(frozen=True)
class StateLayout:
    """The rows of a metric's state.

    Attributes:
        bins: by the sum's name, its number of bins; None for a sum without bins. In the order in which `unpack` gives them.
        values_per_row: by the sum's name, how many terms each row of scores has.
    """

    bins: Mapping[str, int | None]
    values_per_row: Mapping[str, int]

    @classmethod
    def of(cls, terms: Mapping[str, Terms]) -> StateLayout:
        """The layout of these sums; only the shapes of the terms are read."""
        values = {name: term.values if isinstance(term, Binned) else term for name, term in terms.items()}
        return cls(
            {name: term.num_bins if isinstance(term, Binned) else None for name, term in terms.items()},
            {name: value.shape[1:].numel() for name, value in values.items()},
        )

    @cached_property
    def rows(self) -> dict[str, int]:
        """How many rows each sum has; sorted, so that metrics of the same sums have the same state."""
        return {name: bins or 1 for name, bins in sorted(self.bins.items())}

    @cached_property
    def size(self) -> int:
        """How many rows the state has in all."""
        return len(COUNTS) + sum(self.rows.values())

    def by_name(self, state: Tensor) -> dict[str, Tensor]:
        """The rows of each sum, ``(rows, …)`` to ``(bins or 1, …)``, without the counts."""
        return dict(zip(self.rows, torch.split(state[len(COUNTS) :], list(self.rows.values())), strict=True))

    def unpack(self, values: Tensor) -> dict[str, Tensor]:
        """``(rows,)`` float64 to a number per sum, or ``(num_bins,)``, by name."""
        named = self.by_name(values)
        return {name: named[name][0] if bins is None else named[name] for name, bins in self.bins.items()}

    def pack(self, named: Mapping[str, Tensor]) -> Tensor:
        """What `unpack` undoes: each sum ``(…)`` or ``(…, num_bins)`` to packed states ``(…, rows, 8)``, with counts of 0."""
        columns = [named[name] if self.bins[name] else named[name][..., None] for name in self.rows]
        values = torch.cat([column.double() for column in columns], dim=-1)
        counts = values.new_zeros(*values.shape[:-1], len(COUNTS))
        return exact_sum.exact(torch.cat([counts, values], dim=-1))

    def counts(self, state: Tensor) -> dict[str, int]:
        """How many rows counted, were ignored, had invalid targets, gave nan and gave infinite terms; waits for the device."""
        state = state.cpu()
        numbers = {name: int(state[i, 2] + (state[i, 3] << 32)) for i, name in enumerate(COUNTS)}
        terms = {"nan": slice(4, 5), "infinite": slice(5, 7)}
        sums = self.by_name(state)
        return numbers | {
            kind: max(math.ceil(int(rows[:, at].sum()) / self.values_per_row[name]) for name, rows in sums.items())
            for kind, at in terms.items()
        }
