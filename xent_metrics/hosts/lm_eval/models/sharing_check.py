"""Compare shared rows with windows that run alone, while requests run: `SharingCheck`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xent_metrics.hosts.lm_eval.models.forward import Forward
from xent_metrics.hosts.lm_eval.models.packing import PrefixGroup, Row, alone
from xent_metrics.hosts.lm_eval.models.verify import distance, tolerance
from xent_metrics.hosts.lm_eval.models.windows import Window

__all__ = ["DisagreementError", "SharingCheck"]


class DisagreementError(Exception):
    """Sharing changed a result."""


class SharingCheck:
    """Checks each batch that has longer shared rows, or deeper shared windows, than all batches before it.

    A mask can be wrong from some column of a row on, or from some position in a window on, so both count.

    Attributes:
        longest: ids in the longest shared row that agreed.
        deepest: ids in the longest shared window that agreed.
    """

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.longest = self.deepest = 0

    def check(self, group: PrefixGroup, rows: Sequence[Row], states: Tensor, windows: Sequence[Window]) -> None:
        """Run one or two windows of the batch alone, if it shares more than all that were checked.

        Raises:
            DisagreementError: their states differ from those in the batch.
        """
        prefix = len(group.prefix)
        shared = [row for row in rows if prefix or not row.is_chain]
        if not shared:
            return
        row = max(shared, key=len)
        longest = prefix + len(row)
        deep = max(
            (place for row in shared for place, _, _ in row.places), key=lambda place: len(windows[place].inputs)
        )
        deepest = len(windows[deep].inputs)
        doubtful = set[int]()
        if longest > self.longest:
            doubtful.add(row.places[-1][0])  # the last window, whose ids are farthest apart
        if deepest > self.deepest:
            doubtful.add(deep)
        if doubtful:
            self._compare(doubtful, rows, states, windows)
        self.longest, self.deepest = max(self.longest, longest), max(self.deepest, deepest)

    def _compare(self, places: set[int], rows: Sequence[Row], states: Tensor, windows: Sequence[Window]) -> None:
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
                raise DisagreementError(
                    f"the predictions of {len(windows[place].inputs)} ids in a row of {max(map(len, rows))} are {error:.1e} "
                    f"off those of the same ids alone (at most {tolerance(self.forward):.0e})"
                )
