"""Takes exact sums of terms: all of one batch, or of each sequence, with alike terms in one pass.

A `TokenScores` keeps what was taken of it in its `memo`, see shared_sums.py for the keys. A plugin's `exact_sums_backend`
is asked first; without one, torch takes the sums.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring.backends import described, first_result, is_plain
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums import exact_sum
from xent_metrics.sums.terms import Binned, Terms

__all__ = ["by_sequence", "take_sums", "take_sums_by_sequence"]


def take_sums(scores: TokenScores, terms: Mapping[str, Terms]) -> None:
    """Take exact sums, ``(rows, 8)``, into the scores' `memo`, each under its key."""
    scores.memo.update({key: sums[0] for key, sums in _sums(terms, 1).items()})


def take_sums_by_sequence(scores: TokenScores, terms: Mapping[str, Terms]) -> None:
    """Take the exact sums of each sequence, ``(B, rows, 8)``, into the scores' `memo`, each `by_sequence` of its key.

    The first dimension of the scores counts the sequences.

    Raises:
        InvalidInputError: the first dimension of a term doesn't.
    """
    count = len(scores) if scores.nll.ndim else 1
    for key, term in terms.items():
        values = _values(term)
        if scores.nll.ndim and values.shape[:1] != scores.nll.shape[:1]:
            raise InvalidInputError(
                f"expected terms of each of {count} sequences, ({count}, …); those of {key} are {tuple(values.shape)}"
            )
    sums = _sums(terms, count)
    scores.memo.update({by_sequence(key): each for key, each in sums.items()})


def by_sequence(key: str) -> str:
    """The key of each sequence's own sums."""
    return f"{key} by sequence"


def _sums(terms: Mapping[str, Terms], count: int) -> dict[str, Tensor]:
    """The sums of each of `count` equal parts of the terms, ``(count, rows, 8)``."""
    found: dict[str, Tensor] = {}
    for group in _alike(terms):
        members = list(group.values())
        values = _stacked([_values(term).reshape(-1) for term in members])  # (K, N)
        found |= dict(zip(group, _parts(values, members[0], count).unbind(), strict=True))
    return found


def _parts(values: Tensor, like: Terms, count: int) -> Tensor:
    """``(K, N)`` to ``(K, count, rows, 8)``."""
    kinds = len(values)
    if not isinstance(like, Binned):
        sums = _exact_sums(values.reshape(kinds * count, values.shape[1] // max(count, 1)), None, 1)
        return sums.reshape(kinds, count, 1, exact_sum.ROW)
    bins = like.bins.reshape(-1)
    if count != 1:
        first = torch.arange(count, device=bins.device)[:, None] * like.num_bins
        bins = (bins.reshape(count, len(bins) // max(count, 1)) + first).reshape(-1)
    return _exact_sums(values, bins, count * like.num_bins).reshape(kinds, count, like.num_bins, exact_sum.ROW)


def _exact_sums(values: Tensor, bins: Tensor | None, num_bins: int) -> Tensor:
    """``(K, N)`` to ``(K, num_bins, 8)``, by a plugin's backend if one takes them."""
    if is_plain(values) and values.numel():
        shape = (len(values), num_bins, exact_sum.ROW)
        problem = functools.partial(_problem, shape=shape, device=values.device)
        sums: Tensor | None = first_result("exact_sums_backend", problem, values=values, bins=bins, num_bins=num_bins)
        if sums is not None:
            return sums
    if bins is None:
        return exact_sum.exact_sums(values)[:, None]
    return exact_sum.exact_sums_by_bin(values, bins, num_bins)


def _problem(result: Any, *, shape: tuple[int, ...], device: torch.device) -> str:
    """What is wrong with a backend's result; empty if nothing is."""
    if type(result) is Tensor and (result.shape, result.dtype, result.device) == (shape, torch.int64, device):
        return ""
    return f"{described(result)}; expected int64 of shape {shape} on {device}"


def _stacked(columns: list[Tensor]) -> Tensor:
    dtype = functools.reduce(torch.promote_types, [column.dtype for column in columns])
    return torch.stack([column.to(dtype) for column in columns])


def _alike(terms: Mapping[str, Terms]) -> list[dict[str, Terms]]:
    """Groups of terms that one pass can take: equally many, over the same bins, and exact in one dtype."""
    groups: list[dict[str, Terms]] = []
    for key, term in terms.items():
        for group in groups:
            if _is_alike(term, next(iter(group.values()))):
                group[key] = term
                break
        else:
            groups.append({key: term})
    return groups


def _is_alike(a: Terms, b: Terms) -> bool:
    first, second = _values(a), _values(b)
    if first.numel() != second.numel() or _is_whole(first) != _is_whole(second):
        return False
    if first.device.type == "cpu" and torch.float64 in (first.dtype, second.dtype) and first.dtype != second.dtype:
        return False  # there another pass is cheaper than to widen all
    if isinstance(a, Binned) and isinstance(b, Binned):
        return a.bins is b.bins and a.num_bins == b.num_bins
    return not (isinstance(a, Binned) or isinstance(b, Binned))


def _is_whole(values: Tensor) -> bool:
    """True for integers, which a float may not hold; a bool fits every dtype."""
    return not values.is_floating_point() and values.dtype != torch.bool


def _values(term: Terms) -> Tensor:
    return term.values if isinstance(term, Binned) else term
