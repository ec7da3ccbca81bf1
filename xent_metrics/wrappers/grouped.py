"""Grouped: any metric by label, position, document or frequency of the target; exact and mergeable.

by_domain = Grouped(CrossEntropy(), by="group", labels=["code", "prose"])
by_domain.update(logits, target, group=domain_ids)          # ids (…) or one per sequence
by_domain.by_group()                                        # {"code": 1.9, "prose": 2.4}
by_position = Grouped(CrossEntropy(), by=Position([0, 64, 256, 1024]))
by_document = Grouped(CrossEntropy(), by=Document(1000))    # updated with the document of each row or sequence
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from xent_metrics.errors import MetricOptionError
from xent_metrics.plots import draw_by_group, pyplot_axes
from xent_metrics.plugins import as_metric
from xent_metrics.scoring.scores import ExtraScore, TokenScores
from xent_metrics.sums.layout import COUNTS, StateLayout, count_terms
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.sums.terms import Binned, Terms
from xent_metrics.wrappers.grouping import Grouping, Label, in_groups

__all__ = ["Grouped"]


@dataclass(frozen=True)
class _GroupedSums:
    """The sums of a metric, each binned by group: their names, and how they are read back."""

    inner: StateLayout
    groups: int
    by: str

    def name(self, inner: str) -> str:
        return f"{inner} by {self.by}"

    @property
    def in_no_group(self) -> str:
        return f"in no group by {self.by}"

    def of(self, terms: Mapping[str, Terms], ids: Tensor, counted: Tensor) -> dict[str, Terms]:
        """The grouped terms of the metric's own `terms`; `ids` of no group lie outside ``[0, groups)``."""
        outside = (ids < 0) | (ids >= self.groups)
        ids = ids.masked_fill(outside, 0)
        named: dict[str, Terms] = {self.in_no_group: counted & outside}
        cells: dict[tuple[int, torch.Size], Tensor] = {}  # shared by the terms over the same bins, which one pass takes
        for name, term in terms.items():
            values, bins, size = (term.values, term.bins, term.num_bins) if isinstance(term, Binned) else (term, 0, 1)
            rows = (*ids.shape, *[1] * (values.ndim - ids.ndim))  # a row may have several values
            # torch 2.10 can't trace the `id` of a number.
            key = id(bins) if isinstance(bins, Tensor) else bins, values.shape[ids.ndim :]
            if key not in cells:
                cells[key] = (ids.reshape(rows) * size + bins).expand(values.shape)
            kept = values.masked_fill(outside.reshape(rows), 0)
            named[self.name(name)] = Binned(kept, cells[key], self.groups * size)
        return named

    def by_name(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The metric's own sums by their names, each ``(groups, bins)``."""
        return {name: sums[self.name(name)].reshape(self.groups, -1) for name in self.inner.bins}

    def group(self, named: Mapping[str, Tensor], group: int) -> dict[str, Tensor]:
        """The metric's sums of one group, as its `value` takes them."""
        return {name: rows[group] if self.inner.bins[name] else rows[group, 0] for name, rows in named.items()}

    def total(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The metric's sums over all groups."""
        return self.group({name: rows.sum(dim=0, keepdim=True) for name, rows in named.items()}, 0)

    def places(self, outer: StateLayout) -> Tensor:
        """The rows of the grouped state that make the metric's own state of each group, ``(groups, rows)``."""
        starts, start = {}, len(COUNTS)
        for name, size in outer.rows.items():
            starts[name], start = start, start + size
        wanted = {**dict.fromkeys(COUNTS, 1), **self.inner.rows}
        columns = [
            starts[self.name(name)] + torch.arange(self.groups * size, device="cpu").reshape(self.groups, size)
            for name, size in wanted.items()
        ]
        return torch.cat(columns, dim=1)


class Grouped(TokenMetric):
    """A metric of each group of rows, and the metric over all groups (micro) or the mean of the groups' values (macro).

    Args:
        metric: the metric or its registered name; its own state is not used. Its sums must be over rows: a `StandardError`
            sums over sequences, so it goes around a Grouped, not into it.
        by: a `Position`, `Frequency`, `Document` or `Label`; or "group" for a `Label` of `labels`.
        labels: the groups' names, by id, for ``by="group"``.
        average: "micro" or "macro" (over the groups with rows).
        kwargs: as for `TokenMetric`.

    Rows in no group (ids outside, a position before the first edge) are left out, and counted in `counts`. The unit is the
    metric's. For errors by group use ``StandardError(Grouped(…)).by_group()``, or `group_states` of documents.

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
        metric: TokenMetric | str,
        by: Grouping | Literal["group"] = "group",
        labels: Sequence[str] = (),
        average: Literal["micro", "macro"] = "micro",
        **kwargs: Any,
    ) -> None:
        metric = as_metric(metric)
        super().__init__(ignore_index=metric.ignore_index, **kwargs)
        if average not in ("micro", "macro"):
            raise MetricOptionError(f'average is "micro" or "macro"; got {average!r}')
        if not isinstance(by, Grouping) and (by != "group" or not labels):
            raise MetricOptionError(
                f'by is a Grouping, or "group" with labels=[…]; got {by!r} with labels={list(labels)}'
            )
        self.grouping = by if isinstance(by, Grouping) else Label(labels)
        self.average = average
        self.metric = copy.deepcopy(metric)
        self._describe(metric)
        self._grouped = _GroupedSums(metric.layout, len(self.grouping.labels), self.grouping.described)
        self._check_that_sums_are_over_rows()

    def _describe(self, metric: TokenMetric) -> None:
        self.name = f"{metric.name}_by_group"  # type: ignore[misc]
        self.value_unit = metric.value_unit
        self.interval_scale = metric.interval_scale  # type: ignore[misc]
        self.value_range = metric.value_range  # type: ignore[misc]
        self.requires = metric.requires | self.grouping.requires
        self.row_kinds = metric.row_kinds  # type: ignore[misc]

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]  # torchmetrics lets no instance set its own
        """The metric's."""
        return self.metric.higher_is_better

    def _check_that_sums_are_over_rows(self) -> None:
        """Raise now rather than in the first update."""
        self._row_terms(self.metric.empty_scores().map(lambda tensor: tensor.reshape(0, 1, *tensor.shape[1:])))

    def _row_terms(self, scores: TokenScores) -> dict[str, Terms]:
        """The terms of the metric's sums and counts, ``(…)`` or ``(…, K)`` for scores ``(…)``."""
        terms = count_terms(scores) | self.metric.terms(scores)
        for name, term in terms.items():
            values = term.values if isinstance(term, Binned) else term
            if values.shape[: scores.nll.ndim] != scores.nll.shape:
                raise MetricOptionError(
                    f"{self.metric.name} sums over sequences, not over rows, and can't be grouped ({name!r} is "
                    f"{tuple(values.shape)} for scores of {tuple(scores.nll.shape)}). For errors by group use "
                    "StandardError(Grouped(metric, …)).by_group()"
                )
        return terms

    # From scores to sums.

    def scoring_options(self) -> dict[str, Any]:
        return self.metric.scoring_options()

    def extra_scores(self) -> Mapping[str, ExtraScore]:
        return self.metric.extra_scores()

    def sums(self, scores: TokenScores) -> Mapping[str, Terms]:
        return self._grouped.of(self._row_terms(scores), self.grouping(scores).long(), scores.counted)

    def score(
        self,
        logits: Any,
        target: Any = None,
        *,
        weight: Any = None,
        extra_scores: Mapping[str, ExtraScore] | None = None,
        group: Any = None,
    ) -> TokenScores:
        """The metric's scores, with the groups in them if `group` is given."""
        options = {"extra_scores": extra_scores} if extra_scores else {}
        scores = self.metric.score(logits, target, weight=weight, **options)
        return scores if group is None else in_groups(scores, group)

    def update(self, logits: Any, target: Any = None, *, weight: Any = None, group: Any = None) -> None:
        """Add a batch, as the metric does; `group` holds ids, of the targets' shape or one per sequence."""
        super().update(self.score(logits, target, weight=weight, group=group))

    def forward(self, logits: Any, target: Any = None, *, weight: Any = None, group: Any = None) -> Any:
        """Add a batch, as `update` does, and return its own value."""
        return super().forward(self.score(logits, target, weight=weight, group=group))

    # From sums to values.

    def counts(self) -> dict[str, int]:
        """As for every metric, and how many rows that count are `in_no_group`."""
        outside = self.totals()[self._grouped.in_no_group]
        return super().counts() | {"in_no_group": int(outside)}

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        named = self._grouped.by_name(sums)
        if self.average == "micro":
            return self.metric.value(self._grouped.total(named))
        empty = torch.stack([(rows == 0).all(dim=-1) for rows in named.values()]).all(dim=0)  # (groups,)
        # An empty group's 0/0 would be nan in the gradient, too. What is nan for another reason makes the mean nan.
        filled = {name: torch.where(empty[:, None], 1.0, rows) for name, rows in named.items()}
        return torch.where(empty, 0.0, self._values(filled)).sum() / (~empty).sum()

    def _values(self, named: Mapping[str, Tensor]) -> Tensor:
        groups = range(self._grouped.groups)
        return torch.stack([self.metric.value(self._grouped.group(named, group)) for group in groups])

    def value_of_group(self, sums: Mapping[str, Tensor], group: int) -> Tensor:
        """The metric's value of one group, a 0-d float64, from this metric's sums by name."""
        return self.metric.value(self._grouped.group(self._grouped.by_name(sums), group))

    def by_group(self) -> dict[str, Tensor]:
        """The metric's value of each group by label, over everything added on this process; nan for an empty group.

        `compute` restores the local sums after syncing. For the groups over all processes call this inside
        ``with metric.sync_context():``, on every rank.
        """
        values = self._values(self._grouped.by_name(self.totals()))
        return dict(zip(self.grouping.labels, values.unbind(), strict=True))

    def group_states(self, states: Tensor | None = None) -> dict[str, Tensor]:
        """Each group's packed sums by label, exactly what the metric itself would hold: to merge, or for intervals.

        Args:
            states: states of this metric, int64 ``(…, rows, 8)``, as ``exact_sums(scores)`` gives one for a document; its
                own state by default.

        >>> from xent_metrics import CrossEntropy, Position, from_loglikelihoods
        >>> from xent_metrics.wrappers.standard_error import standard_error
        >>> metric = Grouped(CrossEntropy(), by=Position([0, 1]))
        >>> texts = [from_loglikelihoods(ll, row_kind="token") for ll in ([-5, -1], [-6, -2, -2], [-7, -1.5])]
        >>> documents = torch.stack([metric.exact_sums(text) for text in texts])
        >>> {label: round(standard_error(metric.metric, s), 3) for label, s in metric.group_states(documents).items()}
        {'0': 0.577, '1+': 0.301}
        """
        states = self.state if states is None else states
        places = self._grouped.places(self.layout).to(states.device)
        return {label: states[..., rows, :] for label, rows in zip(self.grouping.labels, places, strict=True)}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the value of each group over all processes; with `val`, these values over steps.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        if val is not None:
            return super().plot(val, ax)
        figure, axes = pyplot_axes(ax)
        with self.over_all_processes():
            values = {label: float(value) for label, value in self.by_group().items()}
        title = self.metric.name.replace("_", " ")
        draw_by_group(axes, list(values), list(values.values()), title=title, unit=self.value_unit)
        return figure, axes
