"""Plan which windows share a prefix, and lay them out in rows in which that prefix runs once.

There are two ways to run a shared prefix once. Packing puts windows into one row as a tree: each branch follows the ids
it shares with the window before it. An id attends only to its own ancestors (a block mask) and keeps the position it has
in its own window. Caching runs a prefix by itself and keeps its keys and values. The rows of all windows with this prefix
then start after it. `plan` combines both and picks the cheapest layout it finds, measured in tokens run.

This module only plans. It knows no model, and a row's mask is its only tensor. What is worth sharing depends on the model and
its device (`Costs`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xent_metrics.hosts.lm_eval.models.windows import Window

__all__ = ["PADDING", "Costs", "PrefixGroup", "Row", "after", "alone", "batches_of", "plan"]

PADDING = -1  # the place of targets that belong to no window
_SHORTEST_PREFIX = 32  # tokens; below this, a forward for the prefix costs more than it saves
_LONGEST_TREE = 4096  # ids: bounds the block mask
_LEVELS = 8  # of prefixes within prefixes that are considered


@dataclass
class Row:
    """Windows in one row, after a prefix of `prefix` ids: a tree, or a chain if nothing branches.

    Attributes:
        tokens: the ids, ``(S,)``.
        depths: the position of each id in its own window.
        branches: (start, parent): the ids from `start` on follow the id at column `parent`; −1 is the end of the prefix.
        places: for each window, its place in the list of windows, the columns that predict its targets, and the targets.
    """

    prefix: int = 0
    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    branches: list[tuple[int, int]] = field(default_factory=list)
    places: list[tuple[int, list[int], tuple[int, ...]]] = field(default_factory=list)
    path: list[int] = field(default_factory=list)  # the columns of the window added last

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """True if nothing branches, so that plain causal attention is right."""
        return len(self.branches) <= 1

    def add(self, place: int, window: Window, shared: int = 0) -> None:
        """Add a window that shares its first `shared` ids after the prefix with the window added last."""
        new = window.inputs[self.prefix + shared :]
        start = len(self.tokens)
        if (new and shared < len(self.path)) or not self.branches:
            self.branches.append((start, self.path[shared - 1] if shared else -1))
        self.tokens += new
        self.depths += range(self.prefix + shared, len(window.inputs))
        self.path[shared:] = range(start, len(self.tokens))
        scored = range(len(window.inputs))[window.scored]
        self.places.append((place, [self.path[depth - self.prefix] for depth in scored], window.targets))

    def pad(self, length: int, scored: int) -> None:
        """Add ids up to `length`, and targets at `PADDING` up to `scored` in all; no id before them sees them."""
        self.depths += range(len(self), length)
        self.tokens += [0] * (length - len(self))
        if missing := scored - sum(len(targets) for *_, targets in self.places):
            self.places.append((PADDING, [0] * missing, (0,) * missing))

    def ends(self) -> list[int]:
        """For each column the first one after it that doesn't attend to it.

        Branches are added depth first, so the ids that attend to a column are those from it up to its end.
        """
        ends = [len(self)] * len(self)
        path: list[int] = []
        for (start, parent), after_it in zip(self.branches, [*self.branches[1:], (len(self), -1)], strict=True):
            while path and path[-1] > parent:
                ends[path.pop()] = start
            path += range(start, after_it[0])
        return ends

    def sees(self) -> Tensor:
        """The mask ``(S, S)``, bool: True if the id of the row attends to the id of the column."""
        column = torch.arange(len(self))
        return (column <= column[:, None]) & (column[:, None] < torch.tensor(self.ends(), dtype=torch.long))


@dataclass(frozen=True)
class PrefixGroup:
    """Rows that start after the same prefix, which may be empty."""

    prefix: tuple[int, ...]
    rows: list[Row]

    @property
    def num_tokens(self) -> int:
        """The ids that are run, the prefix's among them."""
        return len(self.prefix) + sum(map(len, self.rows))

    @property
    def longest(self) -> int:
        """The ids of the longest row, the prefix's among them."""
        return len(self.prefix) + max(map(len, self.rows))


@dataclass(frozen=True)
class Costs:
    """What a layout costs on a device, in tokens run. The defaults were measured on CPUs.

    Attributes:
        pairs_per_token: pairs of ids whose attention costs as much as the rest of one token.
        prefix_overhead: tokens that take as long to run as the forward of a prefix takes to start.
        branches_apart: run rows that branch in batches of their own, so that the other batches need no mask.
    """

    pairs_per_token: float = 4096  # about 6 hidden sizes
    prefix_overhead: float = 64
    branches_apart: bool = False

    def of(self, group: PrefixGroup) -> float:
        """In tokens run; a row's attention to itself and to the prefix is counted by its pairs of ids."""
        prefix = len(group.prefix)
        own = prefix + self.prefix_overhead if prefix else 0
        return own + sum(len(row) * (1 + (prefix + len(row)) / self.pairs_per_token) for row in group.rows)


_ON_CPU = Costs()


def alone(place: int, window: Window) -> Row:
    """A row with one window."""
    row = Row()
    row.add(place, window)
    return row


def after(prefix: int, windows: Sequence[Window], *, packing: bool) -> PrefixGroup:
    """All windows after their first `prefix` ids, which they must share."""
    planner = _Planner(windows, range(len(windows)), packing=packing, caching=True)
    return PrefixGroup(windows[0].inputs[:prefix], planner.rows(0, len(windows), prefix))


def plan(
    windows: Sequence[Window], places: Sequence[int], *, packing: bool, caching: bool, costs: Costs = _ON_CPU
) -> list[PrefixGroup]:
    """The cheapest layout found for the windows at `places`, longest first.

    Windows with equal inputs, or with inputs that begin another window, run once even without `packing` and `caching`.

    >>> windows = [Window((1, 2, 3, 4), (5,)), Window((1, 2, 3, 4), (6,)), Window((1, 2, 3, 7), (8,))]
    >>> [group] = plan(windows, range(3), packing=True, caching=True)
    >>> group.rows[0].tokens, group.rows[0].depths
    ([1, 2, 3, 4, 7], [0, 1, 2, 3, 3])
    """
    groups = _Planner(windows, places, packing=packing, caching=caching, costs=costs).groups()
    without = [row for group in groups if not group.prefix for row in group.rows]
    found = [group for group in groups if group.prefix] + ([PrefixGroup((), without)] if without else [])
    for group in found:
        group.rows.sort(key=len, reverse=True)
    return sorted(found, key=lambda group: group.longest, reverse=True)


def batches_of(
    group: PrefixGroup, max_tokens: int, *, row_length: int | None = None, branches_apart: bool = False
) -> Iterator[list[Row]]:
    """The rows of a group in batches of at most `max_tokens` padded ids, but of at least one row.

    Args:
        group: a group whose rows are sorted, longest first.
        max_tokens: the most ids of a batch, prefix and padding included.
        row_length: the length that every row is padded to; by default that of the first row of its batch.
        branches_apart: as in `Costs`. Rows after a prefix stay together, since all of them need a mask.
    """
    parts = [group.rows]
    if branches_apart and not group.prefix:
        parts = [[row for row in group.rows if row.is_chain is chain] for chain in (False, True)]
    for rows in parts:
        start = 0
        while start < len(rows):
            length = row_length or len(group.prefix) + len(rows[start])
            size = max(1, max_tokens // length)
            yield rows[start : start + size]
            start += size


class _Planner:
    """Windows sorted by their ids, so that windows with a shared prefix are neighbours."""

    def __init__(
        self,
        windows: Sequence[Window],
        places: Sequence[int],
        *,
        packing: bool,
        caching: bool,
        costs: Costs = _ON_CPU,
    ) -> None:
        self.packing, self.caching, self.costs = packing, caching, costs
        self.order = sorted(places, key=lambda place: (windows[place].inputs, place))
        self.windows = [windows[place] for place in self.order]
        pairs = zip(self.windows, self.windows[1:], strict=False)
        self.common = [0, *(_common(first.inputs, second.inputs) for first, second in pairs)]

    def groups(self) -> list[PrefixGroup]:
        return [group for low, high in self._parts(0, len(self.order), 1) for group in self._best(low, high, 0)]

    def _parts(self, low: int, high: int, least: int) -> list[tuple[int, int]]:
        """Split where neighbours share fewer than `least` ids."""
        cuts = [i for i in range(low + 1, high) if self.common[i] < least]
        return list(zip([low, *cuts], [*cuts, high], strict=True)) if high > low else []

    def _best(self, low: int, high: int, level: int) -> list[PrefixGroup]:
        """The cheapest of: no prefix; the prefix that all windows share; each part by itself."""
        options = [[PrefixGroup((), self.rows(low, high, 0))]]
        if high - low > 1 and self.caching:
            shared = min(self.common[low + 1 : high])
            unscored = min(window.scored.start for window in self.windows[low:high])
            prefix = min(shared, unscored)  # positions that predict a target stay in the rows
            if prefix >= _SHORTEST_PREFIX:
                options.append([PrefixGroup(self.windows[low].inputs[:prefix], self.rows(low, high, prefix))])
            if level < _LEVELS:
                parts = self._parts(low, high, max(shared + 1, shared * 5 // 4, _SHORTEST_PREFIX))
                options.append([group for part in parts for group in self._best(*part, level + 1)])
        return min(options, key=lambda groups: sum(map(self.costs.of, groups)))

    def rows(self, low: int, high: int, prefix: int) -> list[Row]:
        rows: list[Row] = []
        for i in range(low, high):
            shared = self.common[i] - prefix if rows else 0
            if not rows or not self._joins(rows[-1], shared, len(self.windows[i].inputs) - prefix - shared):
                rows.append(Row(prefix))
                shared = 0
            rows[-1].add(self.order[i], self.windows[i], shared)
        return rows

    def _joins(self, row: Row, shared: int, new: int) -> bool:
        """True if a window belongs into the row: it continues the last window, or branching saves more than it costs."""
        if shared == len(row.path):
            return True
        masked = 2 * new * len(row)  # pairs that attention computes and the mask discards
        return self.packing and len(row) + new <= _LONGEST_TREE and shared * self.costs.pairs_per_token >= masked


def _common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """The number of ids at the beginning that two windows have in common."""
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))
