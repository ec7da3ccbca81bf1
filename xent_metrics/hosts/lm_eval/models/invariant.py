"""Batches in which a window's scores have the same bits in any company: `invariant=true` in `xent-hf`.

The bits of a matrix product depend on its shape. Here a window runs in a shape that follows from the window alone: its ids are
padded to one of a few lengths, the positions to score to one of a few counts, and batches of this shape always have the same
number of rows. If there are too few windows, the other rows are padding. Nothing is shared.

This is enough if a row's bits depend neither on its place in the batch nor on the other rows. On a CPU the number of threads
may change them, too, and each process of a launcher has its own number. So each shape is tried with made-up ids before its
first use, and the bits that count are those on one thread:

1. The same windows at other places, in other company, must give the same bits. Otherwise windows of this shape run one by one.
2. If not even a repetition gives the same bits, the model is refused.
3. If this process' number of threads gives other bits, it runs on one thread.

Experts and quantized layers, in which other ids of a batch decide how one is rounded, always run windows one by one. The ids that
are tried, and so the outcome, depend on the shape alone.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval.models.hf_forward import HFForward
from xent_metrics.hosts.lm_eval.models.packing import PrefixGroup, Row, alone
from xent_metrics.hosts.lm_eval.models.transfer import pack
from xent_metrics.hosts.lm_eval.models.windows import Window
from xent_metrics.metrics.distribution import entropy
from xent_metrics.scoring.scores import ExtraScore, TokenScores

__all__ = ["FixedShapes", "Shape"]

log = logging.getLogger(__name__)

_CPU_IDS, _DEVICE_IDS = 256, 4096  # ids of a batch, unless one row has more
_SHORTEST = 16  # ids of a row
_FEWEST = 4  # positions that are scored of a row
_TRIED = 256  # ids of the longer shape that is tried when the model is loaded
#: Tried, too: extra scores are computed in a pass of their own.
_EXTRA = {"entropy": ExtraScore(entropy)}


class Shape(NamedTuple):
    """The ids of a row, and how many of its positions are scored, padding included."""

    length: int
    scored: int


class FixedShapes:
    """Lays windows out in batches of fixed shapes.

    Args:
        forward: runs the rows. Its shortcuts that share anything are switched off.
        ids: ids of text, of which windows to try are made.
        max_length: the most ids of a window.

    Attributes:
        num_ids: the ids of a batch whose rows have no more; the same for every `batch_size`.

    Raises:
        InvalidInputError: two runs of the same windows gave different bits, or the model's rotary frequencies depend on the
            windows that ran before.
    """

    def __init__(self, forward: HFForward, ids: Sequence[int], max_length: int) -> None:
        switch = forward.rope_switch
        if switch is not None and not switch.once and max_length > switch.length:
            raise InvalidInputError(
                f"invariant=true: beyond {switch.length} ids the rotary frequencies of {forward.name} depend on the windows "
                f"that ran before; pass max_length={switch.length} or less"
            )
        forward.packing = forward.caching = forward.end_to_end = False
        self.forward, self.ids, self.max_length = forward, ids, max_length
        self.num_ids = _CPU_IDS if forward.device.type == "cpu" else _DEVICE_IDS
        self._rows: dict[Shape, int] = {}
        self._one_thread = False
        with self.threads():
            for length, scored in ((_TRIED // 8, 1), (_TRIED, _TRIED)):
                self.rows(self.shape(min(length, max_length), min(scored, max_length)))

    def shape(self, length: int, scored: int) -> Shape:
        """The shape in which windows of `length` ids run of which `scored` positions are scored."""
        switch = self.forward.rope_switch
        short = switch is not None and length <= switch.length
        most = min(self.max_length, switch.length) if switch is not None and short else self.max_length
        padded = min(_padded_length(length), most)
        return Shape(padded, min(_padded_count(scored), padded))

    def rows(self, shape: Shape) -> int:
        """The rows of every batch of this shape."""
        if shape not in self._rows:
            self._rows[shape] = self._try(shape)
        return self._rows[shape]

    def groups(self, windows: Sequence[Window], places: Sequence[int]) -> Iterator[PrefixGroup]:
        """The windows at `places`, longest first; each group is one batch."""
        found = defaultdict[Shape, list[Row]](list)
        for place in places:
            window = windows[place]
            found[self.shape(len(window.inputs), len(window.targets))].append(alone(place, window))
        for shape in sorted(found, reverse=True):
            size = self.rows(shape)
            for start in range(0, len(found[shape]), size):
                yield PrefixGroup((), _filled(found[shape][start : start + size], shape, size))

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Within it, windows run on a number of threads that doesn't change their bits."""
        threads = torch.get_num_threads()
        if self._one_thread:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    # Trying shapes.

    def _try(self, shape: Shape) -> int:
        """The most rows in which the bits of a window depend on nothing else. Sets the threads to suit, too."""
        threads = torch.get_num_threads()
        # Experts take products of as many ids as are sent to them, so a try with other ids shows nothing.
        most = 1 if self.forward.rounds_by_neighbours else max(1, self.num_ids // shape.length)
        windows = self._made_up(shape, most)
        for size in sorted({most, 1}, reverse=True):
            in_order: list[int | None] = [*range(size)]
            moved = [place if place % 2 == 0 else None for place in reversed(range(size))]
            torch.set_num_threads(1)
            expected, found = (self._bits(shape, windows, order) for order in (in_order, moved))
            torch.set_num_threads(threads)
            if _agree(found, expected):
                if threads > 1 and not _agree(self._bits(shape, windows, in_order), expected):
                    self._keep_to_one_thread()
                return size
            if size > 1:
                log.warning(
                    "xent-hf: invariant=true runs windows of %d ids of %s one by one: other rows of a batch change their bits",
                    *(shape.length, self.forward.name),
                )
        raise InvalidInputError(
            f"invariant=true: two runs of the same {shape.length} ids by {self.forward.name} on {self.forward.device} gave "
            "different bits. Try attn_implementation=eager and no plugins, or leave invariant out"
        )

    def _keep_to_one_thread(self) -> None:
        log.warning(
            "xent-hf: invariant=true runs %s on one thread: more threads change its bits. Start more processes to use all cores",
            self.forward.name,
        )
        self._one_thread = True
        torch.set_num_threads(1)

    def _made_up(self, shape: Shape, number: int) -> list[Window]:
        drawn = torch.randint(len(self.ids), (number, shape.length + 1), generator=torch.Generator().manual_seed(0))
        texts = [[self.ids[i] for i in row] for row in drawn.tolist()]
        return [Window(tuple(text[:-1]), tuple(text[-shape.scored :])) for text in texts]

    def _bits(self, shape: Shape, windows: Sequence[Window], order: Sequence[int | None]) -> dict[int, Tensor]:
        """The bytes of the scores of the windows at the places in `order`, where None is a row of padding."""
        rows = [Row() if place is None else alone(place, windows[place]) for place in order]
        scores = self._scores(_filled(rows, shape, len(rows)))
        parts = [scores[start : start + shape.scored] for start in range(0, len(rows) * shape.scored, shape.scored)]
        return {place: _bytes(part) for place, part in zip(order, parts, strict=True) if place is not None}

    def _scores(self, rows: Sequence[Row]) -> TokenScores:
        asked, self.forward.extra_scores = self.forward.extra_scores, _EXTRA
        try:
            return self.forward.score(
                self.forward.states(rows), [i for row in rows for *_, ids in row.places for i in ids]
            )
        finally:
            self.forward.extra_scores = asked


def _filled(rows: Sequence[Row], shape: Shape, size: int) -> list[Row]:
    """The rows, and rows of padding up to `size`, all padded to one shape."""
    filled = [*rows, *(Row() for _ in range(size - len(rows)))]
    for row in filled:
        row.pad(*shape)
    return filled


def _bytes(scores: TokenScores) -> Tensor:
    tensors: list[Tensor] = []
    scores.map(lambda tensor: tensors.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return pack(tensors)


def _agree(found: dict[int, Tensor], expected: dict[int, Tensor]) -> bool:
    return all(torch.equal(part, expected[place]) for place, part in found.items())


def _padded_length(length: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, …: at most half as much again.

    >>> [_padded_length(length) for length in (1, 17, 24, 25, 1000)]
    [16, 24, 24, 32, 1024]
    """
    power = max(_SHORTEST, 1 << (length - 1).bit_length())
    return power * 3 // 4 if length <= power * 3 // 4 and power > _SHORTEST else power


def _padded_count(scored: int) -> int:
    """The next power of 4, which leaves few shapes.

    >>> [_padded_count(scored) for scored in (1, 4, 5, 17)]
    [4, 4, 16, 64]
    """
    count = _FEWEST
    while count < scored:
        count *= 4
    return count
