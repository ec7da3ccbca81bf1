"""Windows to scores: planned by packing.py, run by forward.py, and checked while it runs.

A batch with longer shared rows or deeper shared windows than any before also runs one of them alone, since a mask can go
wrong by the columns of a row and by the positions in a window. If the two don't agree, sharing is switched off with one
line in the log, and all that isn't scored yet, this batch first, runs window by window.

A batch that doesn't fit the memory is run again at half the size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size  # type: ignore[import-untyped]
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from xent_metrics.hosts.lm_eval.models.forward import Forward
from xent_metrics.hosts.lm_eval.models.freed_memory import keep_freed_memory
from xent_metrics.hosts.lm_eval.models.packing import Family, Row, alone, batches_of, plan
from xent_metrics.hosts.lm_eval.models.verify import distance, tolerance
from xent_metrics.hosts.lm_eval.models.windows import Window
from xent_metrics.scoring.scores import TokenScores

__all__ = ["Runner"]

log = logging.getLogger(__name__)


class _DisagreementError(Exception):
    """Sharing changed a result."""


class _TooLargeError(Exception):
    """A batch didn't fit the memory."""

    def __init__(self, error: RuntimeError, rows: Sequence[Row]) -> None:
        super().__init__(str(error))
        self.error = error
        self.num_rows, self.num_tokens = len(rows), len(rows) * max(map(len, rows))


@contextmanager
def _told_when_too_large(rows: Sequence[Row]) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error):
            raise _TooLargeError(error, rows) from error
        raise


class Runner:
    """Scores windows by a `Forward`."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.longest = self.deepest = 0  # ids in the longest shared row, and in the deepest shared window, that agreed

    def run(
        self, windows: Sequence[Window], *, share: bool, max_tokens: int, progress: Callable[..., tqdm]
    ) -> Iterator[tuple[int, TokenScores]]:
        """Each window's place and scores, on the CPU, as they are done: those of the longest rows first."""
        open_places = dict.fromkeys(range(len(windows)))
        kept = keep_freed_memory() if self.forward.device.type == "cpu" else nullcontext()
        with kept, progress(total=0) as bar:
            while open_places:
                try:
                    for place, scores in self._run(windows, list(open_places), share, max_tokens, bar):
                        del open_places[place]
                        yield place, scores
                except _DisagreementError as error:
                    self.forward.packing = self.forward.caching = False
                    log.warning("xent-hf: sharing is off for %s: %s", self.forward.name, error)
                except _TooLargeError as error:
                    if error.num_rows > 1:
                        max_tokens = error.num_tokens // 2
                        log.warning("xent-hf: out of memory; batches have at most %d tokens from here on", max_tokens)
                    elif share:
                        share = False
                        log.warning("xent-hf: out of memory in one shared row; nothing is shared from here on")
                    else:
                        raise error.error from None
                clear_device_cache()

    def _run(
        self, windows: Sequence[Window], places: Sequence[int], share: bool, max_tokens: int, bar: tqdm
    ) -> Iterator[tuple[int, TokenScores]]:
        forward = self.forward
        families = list(self._families(windows, places, share))
        bar.total = bar.n + sum(family.num_tokens for family in families)
        bar.refresh()
        for family in families:
            with _told_when_too_large([Row(tokens=[*family.stem])]):
                stem = forward.stem(family.stem) if family.stem else None
            bar.update(len(family.stem))
            for rows in batches_of(family, max_tokens):
                with _told_when_too_large(rows):
                    states = forward.states(rows, stem)
                    self._check(family, rows, states, windows)
                    scored = list(self._score(rows, states))
                yield from scored
                bar.update(sum(map(len, rows)))

    def _families(self, windows: Sequence[Window], places: Sequence[int], share: bool) -> Iterator[Family]:
        """The plan; where positions turn to other frequencies, windows on either side of that never meet in a batch.

        What is longer shares no stem, which alone would be short. Where each length has frequencies of its own, windows run
        one by one, shorter ones first, since models keep those of the longest that they have seen until they see a short one.
        """
        packing, stems = share and self.forward.packing, share and self.forward.caching
        turn = self.forward.turn
        deep = [place for place in places if turn is not None and len(windows[place].inputs) > turn.length]
        beyond = set(deep)
        yield from plan(windows, [place for place in places if place not in beyond], packing=packing, stems=stems)
        if turn is not None and turn.once:
            yield from plan(windows, deep, packing=packing, stems=False)
        else:
            for place in sorted(deep, key=lambda place: len(windows[place].inputs)):
                yield from plan(windows, [place], packing=False, stems=False)

    def _score(self, rows: Sequence[Row], states: Tensor) -> Iterator[tuple[int, TokenScores]]:
        places = [place for row in rows for place in row.places]
        scores = self.forward.score(states, [target for _, _, targets in places for target in targets])
        start = 0
        for place, _, targets in places:
            own = scores[start : start + len(targets)].map(torch.clone)  # a view would pickle the whole batch
            start += len(targets)
            yield place, own

    def _check(self, family: Family, rows: Sequence[Row], states: Tensor, windows: Sequence[Window]) -> None:
        """Run windows alone if the batch has longer shared rows or deeper shared windows than all that were checked."""
        stem = len(family.stem)
        shared = [row for row in rows if stem or not row.is_chain]
        if not shared:
            return
        row = max(shared, key=len)
        longest = stem + len(row)
        deep = max(
            (place for row in shared for place, _, _ in row.places), key=lambda place: len(windows[place].inputs)
        )
        deepest = len(windows[deep].inputs)
        doubtful = set[int]()
        if longest > self.longest:
            doubtful.add(row.places[-1][0])  # the last one, whose ids have most between them
        if deepest > self.deepest:
            doubtful.add(deep)
        if doubtful:
            self._compare(doubtful, rows, states, windows)
        self.longest, self.deepest = max(self.longest, longest), max(self.deepest, deepest)

    def _compare(self, places: set[int], rows: Sequence[Row], states: Tensor, windows: Sequence[Window]) -> None:
        """Raise unless the states of the windows at `places` are those that they have alone."""
        found = [place for row in rows for place, _, targets in row.places for _ in targets]
        order = [place for row in rows for place, _, _ in row.places if place in places]
        here = torch.tensor([place in places for place in found], device=states.device)
        together = self.forward.states([alone(place, windows[place]) for place in order])
        sizes = [len(windows[place].targets) for place in order]
        for place, shared, own in zip(
            order, torch.split(states[here], sizes), torch.split(together, sizes), strict=True
        ):
            error = distance(shared, own)
            if not error <= tolerance(self.forward):
                raise _DisagreementError(
                    f"what {len(windows[place].inputs)} ids predict in a row of {max(map(len, rows))} is {error:.1e} off "
                    f"what they predict alone (at most {tolerance(self.forward):.0e})"
                )
