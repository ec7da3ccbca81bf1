"""Canaries: rows that every process sends with its sums, and that say of the totals what was added up.

Before a process uses totals, the canaries show that they are the sums over each process of the group once, that all of
them were at the same sync, and that all of them sent the sums of the same metrics in the same order. A backend that
returns before, or without, adding up is seen by them, as is a process that is one sync ahead.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from xent_metrics.sums import exact_sum

__all__ = ["Canary"]

_WORD = 5  # bytes of a hash in one entry: its sum over 2^23 processes fits in an int64


@dataclass(frozen=True)
class Canary:
    """What a process sends in the first and the last row.

    Attributes:
        rank, size: the process and its group.
        number: of the sync in the group.
        contents: what the rows in between are, equal on all processes.
    """

    rank: int
    size: int
    number: int
    contents: Sequence[str]

    def row(self) -> list[int]:
        """One for the count, the rank and its square, the sync's number, and a hash of what is sent.

        >>> len(Canary(0, 2, 1, ["nats"]).row())
        8
        """
        return [1, self.rank, self.rank**2, self.number, *self._words()]

    def fault_in(self, totals: Sequence[Sequence[int]]) -> str:
        """What is wrong with totals that have these rows first and last, and how to fix it; empty if nothing is.

        >>> ours, theirs = Canary(0, 2, 1, ["nats"]), Canary(1, 2, 1, ["nats"])
        >>> total = [a + b for a, b in zip(ours.row(), theirs.row())]
        >>> ours.fault_in([total, total])
        ''
        >>> ours.fault_in([ours.row(), ours.row()])[:60]
        'what came back is not the sum over 2 processes: it has 1 and'
        """
        n = self.size
        each_once = [n, n * (n - 1) // 2, n * (n - 1) * (2 * n - 1) // 6]
        if any(list(row[:3]) != each_once for row in totals):
            counts = " and ".join(str(row[0]) for row in totals)
            return (
                f"what came back is not the sum over {n} processes: it has {counts} of them in its first and last row. "
                "The group's backend returned before it had added up, or without; use a group of gloo"
            )
        if any(row[3] != n * self.number for row in totals):
            return (
                f"the processes are out of step: here this is sync {self.number} of the group, elsewhere another one, "
                "because a process failed by itself before it had sent its sums, and then computed again. "
                "Make a new group on all processes"
            )
        if any(list(row[4:]) != [n * word for word in self._words()] for row in totals):
            return "the processes sent different metrics. Compute the same metrics in the same order on all of them"
        return ""

    def _words(self) -> list[int]:
        return _hashed(tuple(self.contents))


@functools.lru_cache(maxsize=64)
def _hashed(contents: tuple[str, ...]) -> list[int]:
    digest = hashlib.sha256(repr(contents).encode()).digest()
    return [int.from_bytes(digest[i * _WORD : (i + 1) * _WORD], "big") for i in range(exact_sum.ROW - 4)]
