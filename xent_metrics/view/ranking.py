"""Documents in the order in which they are shown, by columns of numbers: their texts are read when they are shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from xent_metrics.analysis.document_losses import document_losses
from xent_metrics.analysis.run_comparison import shared_places
from xent_metrics.analysis.runs import TaskRun
from xent_metrics.analysis.samples import Keys, keys_of

__all__ = ["Ranking"]

_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Ranking:
    """Documents of a task in one run or in two, in an order.

    Attributes:
        losses: in each run, ``(runs, D)``.
        places: among the samples of each run, ``(runs, D)``.
        keys: of the documents, ``(D,)``.
    """

    losses: _Array
    places: _Array
    keys: Keys

    @classmethod
    def by_loss(cls, task: TaskRun) -> Ranking:
        """The documents with the highest loss first, and those without one last."""
        losses, keys = document_losses(task)[0], keys_of(task.samples)
        order = np.argsort(-losses, kind="stable")  # nan comes last
        return cls(losses[None, order], order[None], keys[order])

    @classmethod
    def by_difference(cls, a: Ranking, b: Ranking) -> Ranking:
        """The documents that two runs share, the largest difference of their losses first."""
        first, second = shared_places(a.keys, b.keys)
        losses = np.concatenate([a.losses[:, first], b.losses[:, second]])
        places = np.concatenate([a.places[:, first], b.places[:, second]])
        order = np.argsort(-np.abs(losses[1] - losses[0]), kind="stable")
        return cls(losses[:, order], places[:, order], a.keys[first][order])

    def __len__(self) -> int:
        return len(self.keys)

    def slug(self, rank: int) -> str:
        """The name of a document in links, the same in every run."""
        return f"{int(self.keys[rank]) % 2**64:016x}"

    def rank(self, slug: str) -> int | None:
        """Where the document of this name is; None if it is nowhere."""
        if not re.fullmatch("[0-9a-f]{16}", slug):
            return None
        found = np.flatnonzero(self.keys.view(np.uint64) == int(slug, 16))
        return int(found[0]) if len(found) else None

    def neighbours(self, rank: int, most: int | None) -> dict[str, str]:
        """The names of the documents before and after one, of the first `most`; empty where there is none."""
        end = len(self) if most is None else min(len(self), most)
        return {
            side: self.slug(at) if 0 <= at < end else "" for side, at in (("before", rank - 1), ("after", rank + 1))
        }
