"""Windows to scores: planned by packing.py, run by forward.py, and checked while it runs.

The first batch that shares more ids than any before also runs one of its windows alone. If the two don't agree, sharing
is switched off with one line in the log, and all that isn't scored yet, this batch first, runs window by window.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from ...scores import TokenScores
from .forward import Forward
from .freed_memory import keep_freed_memory
from .packing import Family, Row, alone, batches_of, plan
from .probe import distance, tolerance
from .windows import Window

__all__ = ["Runner"]

log = logging.getLogger(__name__)


class _DisagreementError(Exception):
    """Sharing changed a result."""


class Runner:
    """Scores windows by a `Forward`."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.checked = 0  # ids in the longest shared row that agreed

    def run(
        self, windows: Sequence[Window], *, share: bool, max_tokens: int, progress: Callable[..., tqdm]
    ) -> Iterator[tuple[int, TokenScores]]:
        """Each window's place and scores, on the CPU, as they are done: those of the longest rows first."""
        open_places = dict.fromkeys(range(len(windows)))
        while open_places:
            try:
                for place, scores in self._run(windows, list(open_places), share, max_tokens, progress):
                    del open_places[place]
                    yield place, scores
            except _DisagreementError as error:
                self.forward.packing = self.forward.caching = False
                log.warning("xent-hf: sharing is off for %s: %s", self.forward.name, error)

    def _run(
        self,
        windows: Sequence[Window],
        places: Sequence[int],
        share: bool,
        max_tokens: int,
        progress: Callable[..., tqdm],
    ) -> Iterator[tuple[int, TokenScores]]:
        forward = self.forward
        families = plan(windows, places, packing=share and forward.packing, stems=share and forward.caching)
        kept = keep_freed_memory() if forward.device.type == "cpu" else nullcontext()
        with kept, progress(total=sum(family.num_tokens for family in families)) as bar:
            for family in families:
                stem = forward.stem(family.stem) if family.stem else None
                bar.update(len(family.stem))
                for rows in batches_of(family, max_tokens):
                    states = forward.states(rows, stem)
                    self._check(family, rows, states, windows)
                    yield from self._score(rows, states)
                    bar.update(sum(map(len, rows)))

    def _score(self, rows: Sequence[Row], states: Tensor) -> Iterator[tuple[int, TokenScores]]:
        places = [place for row in rows for place in row.places]
        scores = self.forward.score(states, [target for _, _, targets in places for target in targets])
        start = 0
        for place, _, targets in places:
            own = scores[start : start + len(targets)].map(torch.clone)  # a view would pickle the whole batch
            start += len(targets)
            yield place, own

    def _check(self, family: Family, rows: Sequence[Row], states: Tensor, windows: Sequence[Window]) -> None:
        """Run the last window of the batch's first shared row alone, if it is longer than all that were checked."""
        sizes = [sum(len(targets) for _, _, targets in row.places) for row in rows]
        shared = [i for i, row in enumerate(rows) if family.stem or not row.is_chain]
        if not shared or len(family.stem) + len(rows[shared[0]]) <= self.checked:
            return
        row, end = rows[shared[0]], sum(sizes[: shared[0] + 1])
        place, _, targets = row.places[-1]
        error = distance(states[end - len(targets) : end], self.forward.states([alone(place, windows[place])]))
        if not error <= tolerance(self.forward):
            raise _DisagreementError(
                f"{len(row)} ids in a row behind {len(family.stem)} are {error:.1e} off the same ids alone "
                f"(at most {tolerance(self.forward):.0e})"
            )
        self.checked = len(family.stem) + len(row)
