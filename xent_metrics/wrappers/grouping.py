"""How rows fall into groups: by label, document, position or the target's frequency.

The ids of labels and documents travel in the scores: `in_groups(scores, ids)` puts them there for a collection, for
`StandardError(Grouped(…))` and for every host that takes scores.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xent_metrics.errors import InvalidInputError, MetricOptionError
from xent_metrics.scoring.inputs import as_tensor
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums.options import readable
from xent_metrics.sums.placement import keeping_values, with_memory

__all__ = ["Document", "Frequency", "Grouping", "Label", "Position", "in_groups"]


def in_groups(scores: TokenScores, ids: Any) -> TokenScores:
    """The scores with each row's group in ``extra_scores["group"]``.

    Args:
        scores: ``(…)``.
        ids: integers of their shape, or of their first dimensions.

    Raises:
        InvalidInputError: ids of another shape.

    >>> from xent_metrics import score_tokens
    >>> scores = score_tokens(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long))
    >>> in_groups(scores, [0, 1]).extra_scores["group"]
    tensor([[0, 0, 0],
            [1, 1, 1]])
    """
    ids = as_tensor(ids).to(scores.device).long()
    if ids.shape != scores.nll.shape[: ids.ndim]:
        raise InvalidInputError(
            f"group has one id per row or per sequence, of shape {tuple(scores.nll.shape)} or its first dimensions; got "
            f"{tuple(ids.shape)}"
        )
    ids = ids.reshape(*ids.shape, *[1] * (scores.nll.ndim - ids.ndim)).expand(scores.nll.shape)
    return dataclasses.replace(scores, extra_scores={**scores.extra_scores, "group": ids})


class Grouping(nn.Module):
    """A function from scores to each row's group, an index ``(…)`` in ``[0, len(labels))``; any other value is no group.

    It is a module so that its tables move with the metric.

    Args:
        labels: the groups' names, all different.
        described: a description with everything that changes the groups.
    """

    requires: frozenset[str] = frozenset()

    def __init__(self, labels: Sequence[str], described: str) -> None:
        super().__init__()
        if not labels or len(set(labels)) < len(labels):
            raise MetricOptionError(f"each group needs a name of its own; got {list(labels)}")
        self.labels, self.described = tuple(labels), described

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Grouping:
        """Move the tables with their values, also for `to_empty`."""
        super()._apply(keeping_values(fn), recurse)  # type: ignore[no-untyped-call]
        return self

    def __call__(self, scores: TokenScores) -> Tensor:
        raise TypeError(f"{type(self).__name__} defines no __call__(scores), which gives the group of each row")


class Label(Grouping):
    """Groups by the caller's own ids, in the order of `labels`: ``update(…, group=ids)``."""

    requires = frozenset({"group"})

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__(labels, f"label {list(labels)}")

    def __call__(self, scores: TokenScores) -> Tensor:
        return scores.extra_scores["group"]


class Document(Label):
    """Groups by document, with ids in ``[0, count)`` per row or per sequence: ``update(…, group=ids)``.

    A document's parts may come in any batch and on any process. `delta_interval`, `bootstrap` and `compare` take its packed
    sums, from `Grouped.group_states`. The state grows with `count`, by 64 bytes per sum: about 300 bytes for a ratio.
    """

    def __init__(self, count: int) -> None:
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise MetricOptionError(f"Document takes the number of documents, at least 1; got {count!r}")
        Grouping.__init__(self, [str(i) for i in range(count)], f"document of {count}")


class Position(Grouping):
    """Groups by the token's position in its sequence, from 0, in ranges between `edges`.

    The position is the index in the last dimension of the scores. Scores of one dimension, ``(N,)``, are one sequence, as
    hosts give a document. A flattened batch has lost its positions: pass it as ``(B, T)``, or use `Label`.
    """

    def __init__(self, edges: Sequence[int]) -> None:
        super().__init__(_ranges(edges), f"position {list(edges)}")
        with with_memory():
            self.register_buffer("edges", torch.tensor(list(edges)), persistent=False)

    def __call__(self, scores: TokenScores) -> Tensor:
        assert isinstance(self.edges, Tensor)
        positions = torch.arange(scores.nll.shape[-1] if scores.nll.ndim else 1, device=scores.device)
        return (torch.searchsorted(self.edges, positions, right=True) - 1).expand(scores.nll.shape)


class Frequency(Grouping):
    """Groups by how often the target's id occurs in a corpus, in ranges between `edges`.

    Args:
        edges: rising numbers, such as ``[0, 1, 100]``.
        counts: a count per id, ``(V,)``.
    """

    requires = frozenset({"target"})

    def __init__(self, edges: Sequence[int], counts: Any) -> None:
        with with_memory():
            counts = as_tensor(counts).long().contiguous()
        bucket = torch.searchsorted(torch.tensor(list(edges), device=counts.device), counts, right=True) - 1
        super().__init__(_ranges(edges), f"frequency {list(edges)} {readable(bucket)}")
        self.register_buffer("bucket", bucket, persistent=False)  # (V,)

    def __call__(self, scores: TokenScores) -> Tensor:
        assert isinstance(self.bucket, Tensor)
        assert scores.target is not None
        if scores.vocab_size is not None and len(self.bucket) < scores.vocab_size:
            raise InvalidInputError(
                f"counts has one entry per class, ({scores.vocab_size},); got ({len(self.bucket)},)"
            )
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
