"""Grouped: where the loss sits, any metric by label, by position, by frequency of the target; exact and mergeable.

by_domain = Grouped(CrossEntropy(), by="group", labels=["code", "prose"])
by_domain.update(logits, target, group=domain_ids)          # ids (…) or one a sequence
by_domain.by_group()                                        # {"code": 1.9, "prose": 2.4}
by_position = Grouped(CrossEntropy(), by=Position([0, 64, 256, 1024]))
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import exact_sum
from .errors import InvalidInputError, MetricOptionError
from .metric import Binned, TokenMetric, _readable
from .row_scores import RowScore
from .scores import TokenScores
from .scoring import as_tensor

__all__ = ["Frequency", "Grouped", "Grouping", "Label", "Position"]


class Grouping(nn.Module):
    """How rows fall into groups: an index ``(…)`` in ``[0, len(labels))`` for each row; anything else is in none.

    A module, for its tables to move with the metric. `described` names it, with all that changes the groups.
    """

    requires: frozenset[str] = frozenset()

    def __init__(self, labels: Sequence[str], described: str) -> None:
        super().__init__()
        if not labels or len(set(labels)) < len(labels):
            raise MetricOptionError(f"groups have names of their own; got {list(labels)}")
        self.labels, self.described = tuple(labels), described

    def __call__(self, scores: TokenScores) -> Tensor:
        raise TypeError(f"{type(self).__name__} defines no __call__(scores): the group of each row")


class Label(Grouping):
    """By the caller's own ids, in the order of `labels`: ``update(…, group=ids)``."""

    requires = frozenset({"group"})

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__(labels, f"label {list(labels)}")

    def __call__(self, scores: TokenScores) -> Tensor:
        return scores.extra["group"]


class Position(Grouping):
    """By the token's position in its sequence (the last dimension of the scores), from 0, in ranges between `edges`."""

    def __init__(self, edges: Sequence[int]) -> None:
        super().__init__(_ranges(edges), f"position {list(edges)}")
        self.register_buffer("edges", torch.tensor(list(edges)), persistent=False)

    def __call__(self, scores: TokenScores) -> Tensor:
        assert isinstance(self.edges, Tensor)
        positions = torch.arange(scores.nll.shape[-1] if scores.nll.ndim else 1, device=scores.device)
        return (torch.searchsorted(self.edges, positions, right=True) - 1).expand(scores.nll.shape)


class Frequency(Grouping):
    """By how often the target's id occurs in a corpus: `counts` has a count an id, ``(V,)``; ranges between `edges`."""

    requires = frozenset({"target"})

    def __init__(self, edges: Sequence[int], counts: Any) -> None:
        bucket = torch.searchsorted(torch.tensor(list(edges)), as_tensor(counts).long().contiguous(), right=True) - 1
        super().__init__(_ranges(edges), f"frequency {list(edges)} {_readable(bucket)}")
        self.register_buffer("bucket", bucket, persistent=False)  # (V,)

    def __call__(self, scores: TokenScores) -> Tensor:
        assert isinstance(self.bucket, Tensor)
        assert scores.target is not None
        if scores.vocab_size is not None and len(self.bucket) < scores.vocab_size:
            raise InvalidInputError(f"counts has an entry a class, ({scores.vocab_size},); got ({len(self.bucket)},)")
        return self.bucket[scores.target]


def _ranges(edges: Sequence[int]) -> list[str]:
    """Labels of the ranges [edge_i, edge_{i+1}), the last one open.

    >>> _ranges([0, 1, 64, 256])
    ['0', '1–63', '64–255', '256+']
    """
    if not edges or any(a >= b for a, b in itertools.pairwise(edges)):
        raise MetricOptionError(f"edges rise, such as [0, 64, 256]; got {list(edges)}")
    inner = [f"{a}–{b - 1}" if a < b - 1 else f"{a}" for a, b in itertools.pairwise(edges)]
    return [*inner, f"{edges[-1]}+"]


class Grouped(TokenMetric):
    """A metric taken of each group of rows by itself, and their mean.

    ``value = micro: the metric over the rows of all groups;  macro: the mean of the groups' values`` (of those with rows)

    Args:
        metric: what is taken; its own state is not used.
        by: `Position`, `Frequency`, `Label`, or "group" for a `Label` of `labels`.
        labels: the groups' names, by id, for ``by="group"``.
        average: "micro" or "macro".

    Rows of no group (ids outside, a position before the first edge) are left out. In the metric's own unit.

    >>> from xent_metrics import CrossEntropy
    >>> metric = Grouped(CrossEntropy(), by="group", labels=["a", "b"])
    >>> logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [torch.log(torch.tensor(3.0)), 0.0]])
    >>> metric.update(logits, torch.tensor([0, 1, 0]), group=torch.tensor([0, 0, 1]))
    >>> {label: round(float(value), 4) for label, value in metric.by_group().items()}      # ln 2, ln 4/3
    {'a': 0.6931, 'b': 0.2877}
    """

    formula = "the metric of each group; their mean"
    metric: TokenMetric

    def __init__(
        self,
        metric: TokenMetric,
        by: Grouping | Literal["group"] = "group",
        labels: Sequence[str] = (),
        average: Literal["micro", "macro"] = "micro",
        **kwargs: Any,
    ) -> None:
        super().__init__(ignore_index=metric.ignore_index, **kwargs)
        if average not in ("micro", "macro"):
            raise MetricOptionError(f'average is "micro" or "macro"; got {average!r}')
        if not isinstance(by, Grouping) and (by != "group" or not labels):
            raise MetricOptionError(
                f'by is a Grouping, or "group" with labels=[…]; got {by!r} with labels={list(labels)}'
            )
        self.grouping = by if isinstance(by, Grouping) else Label(labels)
        self.average = average
        self.name = f"{metric.name}_by_group"  # type: ignore[misc]
        self.value_unit = metric.value_unit
        self.requires = metric.requires | self.grouping.requires
        self.row_units = metric.row_units  # type: ignore[misc]
        self.metric = copy.deepcopy(metric)

    def scoring_options(self) -> dict[str, Any]:
        return self.metric.scoring_options()

    def extra_scores(self) -> Mapping[str, RowScore]:
        return self.metric.extra_scores()

    def update(self, logits: Any, target: Any = None, *, weight: Any = None, group: Any = None) -> None:
        """Add a batch, as the metric does; `group` holds ids, of the targets' shape or one a sequence."""
        super().update(self.score(logits, target, weight=weight, group=group))

    def score(
        self,
        logits: Any,
        target: Any = None,
        *,
        weight: Any = None,
        extra: Mapping[str, RowScore] | None = None,
        group: Any = None,
    ) -> TokenScores:
        """The metric's scores, with the group beside them."""
        scores = self.metric.score(logits, target, weight=weight, **({"extra": extra} if extra else {}))
        if group is None:
            return scores
        ids = as_tensor(group).to(scores.device).long()
        if ids.shape != scores.nll.shape[: ids.ndim]:
            raise InvalidInputError(
                f"group has an id a row or a sequence, {tuple(scores.nll.shape)} or its first dimensions; got {tuple(ids.shape)}"
            )
        ids = ids.reshape(*ids.shape, *[1] * (scores.nll.ndim - ids.ndim)).expand(scores.nll.shape)
        return dataclasses.replace(scores, extra={**scores.extra, "group": ids})

    def sums(self, scores: TokenScores) -> Mapping[str, Tensor | Binned]:
        groups = len(self.grouping.labels)
        ids = self.grouping(scores).long()
        inside = (ids >= 0) & (ids < groups)
        ids = torch.where(inside, ids, 0)
        named = {}
        for name, value in self.metric.sums(scores).items():
            values, bins, size = (
                (value.values, value.bins, value.num_bins) if isinstance(value, Binned) else (value, 0, 1)
            )
            if values.shape != ids.shape:
                raise MetricOptionError(f"{self.metric.name} sums more than a number a row and can't be grouped")
            kept = torch.where(inside, values, torch.zeros_like(values))
            named[f"{name} by {self.grouping.described}"] = Binned(kept, ids * size + bins, groups * size)
        return named

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        if self.average == "micro":
            return self.metric.value({name: self._of_all(name, rows) for name, rows in self._by_name(sums).items()})
        values = self._values(sums)
        known = ~values.isnan()
        return torch.where(known, values, 0.0).sum() / known.sum()

    def by_group(self) -> dict[str, Tensor]:
        """The metric's value of each group over all that was added on this process, by label; nan where there is nothing."""
        values = self._values(self.unpack(exact_sum.to_float(self.state)))
        return dict(zip(self.grouping.labels, values.unbind(), strict=True))

    def group_states(self) -> dict[str, Tensor]:
        """Each group's packed sums, as the metric's own state ``(rows, 8)``, for standard errors and further merges."""
        sums = self._by_name(self.unpack(exact_sum.to_float(self.state)))
        labels = self.grouping.labels
        return {
            label: self.metric.pack({n: self._of_group(n, rows, i) for n, rows in sums.items()})
            for i, label in enumerate(labels)
        }

    def _values(self, sums: Mapping[str, Tensor]) -> Tensor:
        named = self._by_name(sums)
        groups = range(len(self.grouping.labels))
        return torch.stack([self.metric.value({n: self._of_group(n, r, i) for n, r in named.items()}) for i in groups])

    def _by_name(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The metric's own sums' names, each ``(groups, bins)``."""
        tail = f" by {self.grouping.described}"
        return {name.removesuffix(tail): rows.reshape(len(self.grouping.labels), -1) for name, rows in sums.items()}

    def _of_group(self, name: str, rows: Tensor, group: int) -> Tensor:
        return rows[group] if self.metric._layout[name] else rows[group, 0]

    def _of_all(self, name: str, rows: Tensor) -> Tensor:
        total = rows.sum(dim=0)
        return total if self.metric._layout[name] else total[0]
