"""Score windows: packing.py plans them, a `Forward` runs them, and sharing_check.py checks them meanwhile.

If a batch that shares more than any before it disagrees with its windows alone (sharing_check.py), sharing is switched off
with one line in the log. Everything that isn't scored yet, including this batch, then runs window by window.

A batch that doesn't fit into memory runs again at half the size.

The results of a batch are read after the next batch has been started, so a device has work while the host reads one batch
and lays out another (transfer.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from accelerate.utils.memory import clear_device_cache  # type: ignore[import-untyped]
from tqdm import tqdm  # type: ignore[import-untyped]

from xent_metrics.hosts.lm_eval.models.forward import Forward
from xent_metrics.hosts.lm_eval.models.freed_memory import keep_freed_memory
from xent_metrics.hosts.lm_eval.models.invariant import FixedShapes
from xent_metrics.hosts.lm_eval.models.packing import PADDING, PrefixGroup, Row, alone, batches_of, plan
from xent_metrics.hosts.lm_eval.models.sharing_check import DisagreementError, SharingCheck
from xent_metrics.hosts.lm_eval.models.sizes import is_out_of_memory
from xent_metrics.hosts.lm_eval.models.transfer import start_copy
from xent_metrics.hosts.lm_eval.models.windows import Window
from xent_metrics.scoring.scores import TokenScores

__all__ = ["Runner"]

log = logging.getLogger(__name__)


class _TooLargeError(Exception):
    """A batch didn't fit into memory."""

    def __init__(self, error: RuntimeError, rows: Sequence[Row]) -> None:
        super().__init__(str(error))
        self.error = error
        self.num_rows, self.num_tokens = len(rows), len(rows) * (rows[0].prefix + max(map(len, rows)))


@contextmanager
def _noticing_too_large(rows: Sequence[Row]) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise _TooLargeError(error, rows) from error
        raise


@dataclass(frozen=True)
class _Batch:
    """A batch that was started, and what waits for its scores; nothing does if they are known."""

    rows: Sequence[Row]
    arrive: Callable[[], TokenScores] | None = None

    @property
    def places(self) -> list[int]:
        """The places of its windows."""
        return [place for row in self.rows for place, _, _ in row.places if place != PADDING]

    def results(self) -> Iterator[tuple[int, TokenScores]]:
        """The place and the scores of each window."""
        if self.arrive is None:
            return
        scores, start = self.arrive(), 0
        for place, _, targets in (place for row in self.rows for place in row.places):
            own = scores[start : start + len(targets)].map(torch.clone)  # a view would pickle the whole batch
            start += len(targets)
            if place != PADDING:
                yield place, own


class Runner:
    """Scores windows with a `Forward`.

    Args:
        forward: runs the rows.
        keep_order: run each window in a row of its own, in the order given, in batches of equal size. These are the batches
            of a DataLoader that doesn't shuffle, if the rows have one length (`Forward.row_length`). A batch that doesn't
            fit into memory is an error then.
        fixed: lays the windows out instead, in batches of fixed shapes. Here, too, a batch that doesn't fit is an error.
    """

    def __init__(self, forward: Forward, *, keep_order: bool = False, fixed: FixedShapes | None = None) -> None:
        self.forward, self.keep_order, self.fixed = forward, keep_order, fixed
        self.sharing = SharingCheck(forward)

    def run(
        self,
        windows: Sequence[Window],
        *,
        share: bool,
        max_tokens: int,
        progress: Callable[..., tqdm],
        known: Set[int] = frozenset(),
    ) -> Iterator[tuple[int, TokenScores]]:
        """Yield the place of each window and its scores, on the CPU, as soon as they are computed.

        Batches don't depend on `known`, so that a window has the same bits whatever is known.

        Args:
            windows: the windows to score.
            share: whether windows may share rows and prefixes, as far as `forward` can do that.
            max_tokens: the most ids of a batch, padding included.
            progress: makes the bar, which counts ids.
            known: the places of windows whose scores aren't needed; a batch of these alone doesn't run.
        """
        open_places = dict.fromkeys(range(len(windows)))
        kept = keep_freed_memory() if self.forward.device.type == "cpu" else nullcontext()
        threads = nullcontext() if self.fixed is None else self.fixed.threads()
        if self.fixed is not None:
            max_tokens = self.fixed.num_ids
        with kept, threads, progress(total=0) as bar:
            while open_places:
                try:
                    for batch in self._run(windows, list(open_places), share, max_tokens, bar, known):
                        for place in batch.places:
                            del open_places[place]
                        yield from (result for result in batch.results() if result[0] not in known)
                except DisagreementError as error:
                    self.forward.packing = self.forward.caching = False
                    log.warning("xent-hf: sharing is off for %s: %s", self.forward.name, error)
                except _TooLargeError as error:
                    share, max_tokens = self._smaller(error, share, max_tokens)
                clear_device_cache()

    def _smaller(self, error: _TooLargeError, share: bool, max_tokens: int) -> tuple[bool, int]:
        """What to do after a batch was too large: `share` and `max_tokens` for the rest."""
        name = self.forward.name
        if self.fixed is not None:
            raise error.error from None
        if error.num_rows > 1 and not self.keep_order:
            log.warning("%s: out of memory; batches have at most %d tokens from here on", name, error.num_tokens // 2)
            return share, error.num_tokens // 2
        if share:
            log.warning("%s: out of memory in one shared row; nothing is shared from here on", name)
            return False, max_tokens
        raise error.error from None

    def _run(
        self,
        windows: Sequence[Window],
        places: Sequence[int],
        share: bool,
        max_tokens: int,
        bar: tqdm,
        known: Set[int],
    ) -> Iterator[_Batch]:
        groups = list(self._groups(windows, places, share))
        bar.total = bar.n + sum(group.num_tokens for group in groups)
        bar.refresh()
        for batch in _one_behind(self._start(windows, groups, max_tokens, bar, known)):
            yield batch
            bar.update(sum(map(len, batch.rows)))

    def _start(
        self,
        windows: Sequence[Window],
        groups: Sequence[PrefixGroup],
        max_tokens: int,
        bar: tqdm,
        known: Set[int],
    ) -> Iterator[_Batch]:
        """Start the batches one after the other, without reading any result."""
        forward = self.forward
        apart = forward.costs.branches_apart
        for group in groups:
            cache = None
            for rows in batches_of(group, max_tokens, row_length=forward.row_length, branches_apart=apart):
                if known and known >= {*_Batch(rows).places}:
                    yield _Batch(rows)
                    continue
                if group.prefix and cache is None:
                    with _noticing_too_large([Row(tokens=[*group.prefix])]):
                        cache = forward.prefix_cache(group.prefix)
                    bar.update(len(group.prefix))
                with _noticing_too_large(rows):
                    states = forward.states(rows, cache)
                    self.sharing.check(group, rows, states, windows)
                    targets = [target for row in rows for _, _, targets in row.places for target in targets]
                    arrive = start_copy(forward.score(states, targets))
                del states
                yield _Batch(rows, arrive)

    def _groups(self, windows: Sequence[Window], places: Sequence[int], share: bool) -> Iterator[PrefixGroup]:
        """The layout of the windows at `places`.

        If RoPE scaling changes the frequencies of long batches, windows on either side of that length never meet in a batch.
        Longer windows share no cached prefix, which would be short by itself. If each length has its own frequencies, longer
        windows run one by one, shortest first, because models keep the frequencies of the longest window that they saw until
        they see a short one.
        """
        if self.fixed is not None:
            yield from self.fixed.groups(windows, places)
            return
        if self.keep_order:
            yield PrefixGroup((), [alone(place, windows[place]) for place in places])
            return
        packing, caching = share and self.forward.packing, share and self.forward.caching
        switch = self.forward.rope_switch
        long = [place for place in places if switch is not None and len(windows[place].inputs) > switch.length]
        beyond = set(long)
        costs, short = self.forward.costs, [place for place in places if place not in beyond]
        yield from plan(windows, short, packing=packing, caching=caching, costs=costs)
        if switch is not None and switch.once:
            yield from plan(windows, long, packing=packing, caching=False, costs=costs)
        else:
            for place in sorted(long, key=lambda place: len(windows[place].inputs)):
                yield from plan(windows, [place], packing=False, caching=False)


def _one_behind(batches: Iterator[_Batch]) -> Iterator[_Batch]:
    """Each batch once the next one was started, or failed to start."""
    started: _Batch | None = None
    try:
        for batch in batches:
            if started is not None:
                yield started
            started = batch
    except (_TooLargeError, DisagreementError):
        if started is not None:
            yield started
        raise
    if started is not None:
        yield started
