"""Grouped: where the loss sits, any metric by label, position, document or frequency of the target; exact and mergeable.

by_domain = Grouped(CrossEntropy(), by="group", labels=["code", "prose"])
by_domain.update(logits, target, group=domain_ids)          # ids (…) or one a sequence
by_domain.by_group()                                        # {"code": 1.9, "prose": 2.4}
by_position = Grouped(CrossEntropy(), by=Position([0, 64, 256, 1024]))
by_document = Grouped(CrossEntropy(), by=Document(1000))    # updated with each row's or sequence's document

The ids travel in the scores: `in_groups(scores, ids)` serves a collection, `StandardError(Grouped(…))` and every host that
takes scores, and ``group=`` is short for it.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from xent_metrics.errors import InvalidInputError, MetricOptionError
from xent_metrics.plugins import as_metric
from xent_metrics.scoring.inputs import as_tensor
from xent_metrics.scoring.scores import ExtraScore, TokenScores
from xent_metrics.sums import exact_sum
from xent_metrics.sums.metric import _COUNTS, Binned, TokenMetric, _counts, _no_rows
from xent_metrics.sums.options import readable

__all__ = ["Document", "Frequency", "Grouped", "Grouping", "Label", "Position", "in_groups"]


def in_groups(scores: TokenScores, ids: Any) -> TokenScores:
    """The scores with the group of each row in them, as ``extra_scores["group"]``: `ids` of their shape, or of its first dimensions.

    >>> from xent_metrics import score_tokens
    >>> scores = score_tokens(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long))
    >>> in_groups(scores, [0, 1]).extra_scores["group"]
    tensor([[0, 0, 0],
            [1, 1, 1]])
    """
    ids = as_tensor(ids).to(scores.device).long()
    if ids.shape != scores.nll.shape[: ids.ndim]:
        raise InvalidInputError(
            f"group has an id a row or a sequence, {tuple(scores.nll.shape)} or its first dimensions; got {tuple(ids.shape)}"
        )
    ids = ids.reshape(*ids.shape, *[1] * (scores.nll.ndim - ids.ndim)).expand(scores.nll.shape)
    return dataclasses.replace(scores, extra_scores={**scores.extra_scores, "group": ids})


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
        return scores.extra_scores["group"]


class Document(Label):
    """By document, of which there are `count`, ids from 0: ``update(…, group=ids)`` with that of each row or sequence.

    A document's parts may come in any batch and on any process. Its packed sums, from `Grouped.group_states`, are what
    `delta_interval`, `bootstrap` and `compare` take. The state grows with `count`, 64 bytes a sum: some 300 for a ratio.
    """

    def __init__(self, count: int) -> None:
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise MetricOptionError(f"Document takes the number of documents, at least 1; got {count!r}")
        Grouping.__init__(self, [str(i) for i in range(count)], f"document of {count}")


class Position(Grouping):
    """By the token's position in its sequence, the last dimension of the scores, from 0, in ranges between `edges`.

    Scores of one dimension, ``(N,)``, are one sequence, as hosts give a document's: a batch that was flattened has lost its
    positions. Pass it as ``(B, T)``, or the positions' groups as ids to a `Label`.
    """

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
        super().__init__(_ranges(edges), f"frequency {list(edges)} {readable(bucket)}")
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
        metric: what is taken, or its registered name; its own state is not used. Any whose sums are over rows: a
            `StandardError`'s are over sequences, and go around a Grouped, not into it.
        by: `Position`, `Frequency`, `Document`, `Label`, or "group" for a `Label` of `labels`.
        labels: the groups' names, by id, for ``by="group"``.
        average: "micro" or "macro".

    Rows of no group (ids outside, a position before the first edge) are left out, and counted in `counts`. In the metric's
    own unit. Errors by group: ``StandardError(Grouped(…)).by_group()``, or `group_states` of documents.

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
        self.name = f"{metric.name}_by_group"  # type: ignore[misc]
        self.value_unit = metric.value_unit
        self.interval_scale = metric.interval_scale  # type: ignore[misc]
        self.requires = metric.requires | self.grouping.requires
        self.row_kinds = metric.row_kinds  # type: ignore[misc]
        self.metric = copy.deepcopy(metric)
        self._check_rows()

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]  # torchmetrics lets no instance set its own
        return self.metric.higher_is_better

    def _check_rows(self) -> None:
        """Raise now, not in the first update, unless the metric's sums are over rows."""
        empty = _no_rows(self.metric.requires, self.metric.extra_scores())
        self._by_row(empty.map(lambda tensor: tensor.reshape(0, 1, *tensor.shape[1:])))

    def scoring_options(self) -> dict[str, Any]:
        return self.metric.scoring_options()

    def extra_scores(self) -> Mapping[str, ExtraScore]:
        return self.metric.extra_scores()

    def update(self, logits: Any, target: Any = None, *, weight: Any = None, group: Any = None) -> None:
        """Add a batch, as the metric does; `group` holds ids, of the targets' shape or one a sequence."""
        super().update(self.score(logits, target, weight=weight, group=group))

    def forward(self, logits: Any, target: Any = None, *, weight: Any = None, group: Any = None) -> Any:
        """Add a batch, as `update` does, and return its own value."""
        return super().forward(self.score(logits, target, weight=weight, group=group))

    def score(
        self,
        logits: Any,
        target: Any = None,
        *,
        weight: Any = None,
        extra_scores: Mapping[str, ExtraScore] | None = None,
        group: Any = None,
    ) -> TokenScores:
        """The metric's scores, with the group in them where it is given."""
        scores = self.metric.score(
            logits, target, weight=weight, **({"extra_scores": extra_scores} if extra_scores else {})
        )
        return scores if group is None else in_groups(scores, group)

    def sums(self, scores: TokenScores) -> Mapping[str, Tensor | Binned]:
        groups = len(self.grouping.labels)
        ids = self.grouping(scores).long()
        inside = (ids >= 0) & (ids < groups)
        ids = torch.where(inside, ids, 0)
        by = self.grouping.described
        named: dict[str, Tensor | Binned] = {f"in no group by {by}": scores.counted & ~inside}
        for name, (values, bins, size) in self._by_row(scores).items():
            rows = (*ids.shape, *[1] * (values.ndim - ids.ndim))  # a row may have several values
            kept = torch.where(inside.reshape(rows), values, torch.zeros_like(values))
            named[f"{name} by {by}"] = Binned(kept, (ids.reshape(rows) * size + bins).expand(kept.shape), groups * size)
        return named

    def _by_row(self, scores: TokenScores) -> dict[str, tuple[Tensor, Tensor | int, int]]:
        """The metric's sums and counts: values ``(…)`` or ``(…, K)``, their bins, and how many bins there are."""
        found: dict[str, tuple[Tensor, Tensor | int, int]] = {}
        for name, value in (_counts(scores) | dict(self.metric.sums(scores))).items():
            binned = (value.values, value.bins, value.num_bins) if isinstance(value, Binned) else (value, 0, 1)
            if binned[0].shape[: scores.nll.ndim] != scores.nll.shape:
                raise MetricOptionError(
                    f"{self.metric.name} sums over sequences, not over rows, and can't be grouped ({name!r} is "
                    f"{tuple(binned[0].shape)} for scores of {tuple(scores.nll.shape)}). The errors of groups are those of "
                    "StandardError(Grouped(metric, …)).by_group()"
                )
            found[name] = binned
        return found

    def counts(self) -> dict[str, int]:
        """As every metric's, and how many rows that count fell `in_no_group`."""
        outside = self.unpack(exact_sum.to_float(self.state))[f"in no group by {self.grouping.described}"]
        return super().counts() | {"in_no_group": int(outside)}

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        named = self._by_name(sums)
        if self.average == "micro":
            return self.metric.value({name: self._of_all(name, rows) for name, rows in named.items()})
        empty = torch.stack([(rows == 0).all(dim=-1) for rows in named.values()]).all(dim=0)  # (groups,)
        # An empty group's 0/0 would be nan in the gradient, too. What is nan for another reason makes the mean nan.
        filled = {name: torch.where(empty[:, None], 1.0, rows) for name, rows in named.items()}
        return torch.where(empty, 0.0, self._values(filled)).sum() / (~empty).sum()

    def by_group(self) -> dict[str, Tensor]:
        """The metric's value of each group over all that was added, by label; nan where there is nothing.

        On this process: `compute` gives its sums back when it has synced them, so that ranks differ here. The groups over all
        processes are those inside ``with metric.sync_context():``, on every rank.
        """
        values = self._values(self._by_name(self.unpack(exact_sum.to_float(self.state))))
        return dict(zip(self.grouping.labels, values.unbind(), strict=True))

    def group_states(self, states: Tensor | None = None) -> dict[str, Tensor]:
        """Each group's packed sums by label, exactly what the metric itself would hold: to merge, or for intervals.

        Args:
            states: of this metric, int64 ``(…, rows, 8)``, as ``exact_sums(scores)`` gives a document's; its own by default.

        >>> from xent_metrics import CrossEntropy, from_loglikelihoods
        >>> from xent_metrics.analysis import delta_interval
        >>> metric = Grouped(CrossEntropy(), by=Position([0, 1]))
        >>> texts = [from_loglikelihoods(ll, row_kind="token") for ll in ([-5, -1], [-6, -2, -2], [-7, -1.5])]
        >>> documents = torch.stack([metric.exact_sums(text) for text in texts])
        >>> errors = {k: delta_interval(metric.metric, s) for k, s in metric.group_states(documents).items()}
        >>> {label: round(interval.value, 3) for label, interval in errors.items()}
        {'0': 6.0, '1+': 1.625}
        """
        states = self.state if states is None else states
        places = self._places().to(states.device)
        return {label: states[..., rows, :] for label, rows in zip(self.grouping.labels, places, strict=True)}

    def _places(self) -> Tensor:
        """Which rows of this metric's state are those of the metric's own state of each group, ``(groups, rows)``."""
        groups, starts, start = len(self.grouping.labels), {}, len(_COUNTS)
        for name, size in self._rows().items():
            starts[name], start = start, start + size
        wanted = {**dict.fromkeys(_COUNTS, 1), **self.metric._rows()}
        columns = [
            starts[f"{name} by {self.grouping.described}"] + torch.arange(groups * size).reshape(groups, size)
            for name, size in wanted.items()
        ]
        return torch.cat(columns, dim=1)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the value of each group over all processes; or, as every metric, `val`: values of `compute` over steps."""
        if val is not None:
            return super().plot(val, ax)
        from matplotlib import pyplot

        from xent_metrics.plots import draw_by_group

        figure, axes = pyplot.subplots() if ax is None else (ax.get_figure(), ax)
        with self.sync_context(self.dist_sync_fn, should_sync=self._to_sync and not self._is_synced):
            values = self.by_group()
        title = self.metric.name.replace("_", " ")
        draw_by_group(
            axes, list(values), [float(value) for value in values.values()], title=title, unit=self.value_unit
        )
        return figure, axes

    def value_of_group(self, sums: Mapping[str, Tensor], group: int) -> Tensor:
        """The metric's value of one group, a 0-d float64, from this metric's sums by name."""
        return self._value(self._by_name(sums), group)

    def _value(self, named: Mapping[str, Tensor], group: int) -> Tensor:
        return self.metric.value(
            {name: rows[group] if self.metric._layout[name] else rows[group, 0] for name, rows in named.items()}
        )

    def _values(self, named: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self._value(named, group) for group in range(len(self.grouping.labels))])

    def _by_name(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The metric's own sums by their names, each ``(groups, bins)``."""
        by, groups = self.grouping.described, len(self.grouping.labels)
        return {name: sums[f"{name} by {by}"].reshape(groups, -1) for name in self.metric._layout}

    def _of_all(self, name: str, rows: Tensor) -> Tensor:
        total = rows.sum(dim=0)
        return total if self.metric._layout[name] else total[0]
