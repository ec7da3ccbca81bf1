"""Which windows share a beginning, and the rows of ids in which it runs once.

Two ways to run a beginning once. Packing: the windows lie in one row as a tree, each branch behind the ids that it
shares with the one before; an id sees only its own ancestors (a block mask) and keeps the position that it has in its
window. Stems: a beginning that many windows share is run alone, its keys and values are kept, and the rows of all that
follows start behind it. A `Plan` of both is chosen by what it costs, in tokens run.

Pure planning: no model and no tensors but the mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xent_metrics.hosts.lm_eval.models.windows import Window

__all__ = ["Family", "Row", "alone", "batches_of", "behind", "plan"]

_SHORTEST_STEM = 32  # tokens; below, a forward of its own costs more than it saves
_STEM_OVERHEAD = 64  # tokens that could have run in the time of a stem's own, small forward
_PAIRS_PER_TOKEN = 4096  # pairs of ids whose attention costs as much as the rest of one token (about 6 hidden sizes)
_LONGEST_TREE = 4096  # ids: bounds the block mask
_LEVELS = 8  # of stems within stems that are weighed up


@dataclass
class Row:
    """Windows laid out in one row, behind a stem of `stem` ids: a tree, or a chain where none branches off.

    Attributes:
        tokens: the ids, ``(S,)``.
        depths: each id's position in its own window.
        branches: (start, parent): the ids from `start` on follow the id at `parent`; −1 is the stem's end.
        places: for each window its place in the list of windows, the columns here that predict its targets, and those.
    """

    stem: int = 0
    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    branches: list[tuple[int, int]] = field(default_factory=list)
    places: list[tuple[int, list[int], tuple[int, ...]]] = field(default_factory=list)
    path: list[int] = field(default_factory=list)  # the columns of the window added last

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether plain causal attention is right: nothing branches."""
        return len(self.branches) <= 1

    def add(self, place: int, window: Window, shared: int = 0) -> None:
        """Lay a window behind the first `shared` ids, counted from the stem's end, of the one added last."""
        new = window.inputs[self.stem + shared :]
        start = len(self.tokens)
        if (new and shared < len(self.path)) or not self.branches:
            self.branches.append((start, self.path[shared - 1] if shared else -1))
        self.tokens += new
        self.depths += range(self.stem + shared, len(window.inputs))
        self.path[shared:] = range(start, len(self.tokens))
        scored = range(len(window.inputs))[window.scored]
        self.places.append((place, [self.path[depth - self.stem] for depth in scored], window.targets))

    def sees(self) -> Tensor:
        """``(S, S)``, bool: whether the id of the row lies behind the id of the column in some window, or is it."""
        length = len(self)
        seen = torch.zeros(length, length, dtype=torch.bool)
        ends = [start for start, _ in self.branches[1:]] + [length]
        for (start, parent), end in zip(self.branches, ends, strict=True):
            if parent >= 0:
                seen[start:end] = seen[parent]
            seen[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        return seen


@dataclass(frozen=True)
class Family:
    """Rows behind one stem; the empty stem is none."""

    stem: tuple[int, ...]
    rows: list[Row]

    @property
    def cost(self) -> float:
        """In tokens run; the attention of a row to itself and to its stem counts by its pairs."""
        stem = len(self.stem)
        own = stem + _STEM_OVERHEAD if stem else 0
        return own + sum(len(row) * (1 + (stem + len(row)) / _PAIRS_PER_TOKEN) for row in self.rows)

    @property
    def num_tokens(self) -> int:
        return len(self.stem) + sum(map(len, self.rows))

    @property
    def longest(self) -> int:
        return len(self.stem) + max(map(len, self.rows))


def alone(place: int, window: Window) -> Row:
    """A row of one window."""
    row = Row()
    row.add(place, window)
    return row


def behind(stem: int, windows: Sequence[Window], *, packing: bool) -> Family:
    """All windows behind the first `stem` ids, which they share."""
    planner = _Planner(windows, range(len(windows)), packing=packing, stems=True)
    return Family(windows[0].inputs[:stem], planner.rows(0, len(windows), stem))


def plan(windows: Sequence[Window], places: Sequence[int], *, packing: bool, stems: bool) -> list[Family]:
    """The cheapest found way to run the windows at `places`, longest first; equal inputs run once in any case.

    >>> windows = [Window((1, 2, 3, 4), (5,)), Window((1, 2, 3, 4), (6,)), Window((1, 2, 3, 7), (8,))]
    >>> [family] = plan(windows, range(3), packing=True, stems=True)
    >>> family.rows[0].tokens, family.rows[0].depths
    ([1, 2, 3, 4, 7], [0, 1, 2, 3, 3])
    """
    families = _Planner(windows, places, packing=packing, stems=stems).families()
    without = [row for family in families if not family.stem for row in family.rows]
    found = [family for family in families if family.stem] + ([Family((), without)] if without else [])
    for family in found:
        family.rows.sort(key=len, reverse=True)
    return sorted(found, key=lambda family: family.longest, reverse=True)


def batches_of(family: Family, max_tokens: int) -> Iterator[list[Row]]:
    """The family's rows, longest first, in batches of at most `max_tokens` padded ids, and of one row at least."""
    start = 0
    while start < len(family.rows):
        size = max(1, max_tokens // (len(family.stem) + len(family.rows[start])))
        yield family.rows[start : start + size]
        start += size


class _Planner:
    """Windows in the order of their ids, so that those that share a beginning are neighbours."""

    def __init__(self, windows: Sequence[Window], places: Sequence[int], *, packing: bool, stems: bool) -> None:
        self.packing, self.stems = packing, stems
        self.order = sorted(places, key=lambda place: (windows[place].inputs, place))
        self.windows = [windows[place] for place in self.order]
        pairs = zip(self.windows, self.windows[1:], strict=False)
        self.common = [0, *(_common(first.inputs, second.inputs) for first, second in pairs)]

    def families(self) -> list[Family]:
        return [family for low, high in self._parts(0, len(self.order), 1) for family in self._best(low, high, 0)]

    def _parts(self, low: int, high: int, least: int) -> list[tuple[int, int]]:
        """Cut where neighbours share fewer than `least` ids."""
        cuts = [i for i in range(low + 1, high) if self.common[i] < least]
        return list(zip([low, *cuts], [*cuts, high], strict=True)) if high > low else []

    def _best(self, low: int, high: int, level: int) -> list[Family]:
        """All in rows without a stem, all behind the stem that all share, or part by part: whichever is cheapest."""
        options = [[Family((), self.rows(low, high, 0))]]
        if high - low > 1 and self.stems:
            shared = min(self.common[low + 1 : high])
            unscored = min(window.scored.start for window in self.windows[low:high])
            stem = min(shared, unscored)  # what predicts a target stays in the rows
            if stem >= _SHORTEST_STEM:
                options.append([Family(self.windows[low].inputs[:stem], self.rows(low, high, stem))])
            if level < _LEVELS:
                parts = self._parts(low, high, max(shared + 1, shared * 5 // 4, _SHORTEST_STEM))
                options.append([family for part in parts for family in self._best(*part, level + 1)])
        return min(options, key=lambda families: sum(family.cost for family in families))

    def rows(self, low: int, high: int, stem: int) -> list[Row]:
        rows: list[Row] = []
        for i in range(low, high):
            shared = self.common[i] - stem if rows else 0
            if not rows or not self._joins(rows[-1], shared, len(self.windows[i].inputs) - stem - shared):
                rows.append(Row(stem))
                shared = 0
            rows[-1].add(self.order[i], self.windows[i], shared)
        return rows

    def _joins(self, row: Row, shared: int, new: int) -> bool:
        """Whether a window belongs behind the last one: a chain always; a branch if it saves more than it costs."""
        if shared == len(row.path):
            return True
        strangers = 2 * new * len(row)  # pairs that attention computes and the mask throws away
        return self.packing and len(row) + new <= _LONGEST_TREE and shared * _PAIRS_PER_TOKEN >= strangers


def _common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """How many ids two windows begin with in common."""
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))
