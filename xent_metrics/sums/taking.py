"""Takes the exact sums of scores: each sum once per `TokenScores`, however many metrics read it.

A `TokenScores` keeps the sums that were taken of it in its `memo`, by key. Equal `SharedSum` objects have one key, unequal
ones different keys, and every metric has keys of its own for its own sums. Keys are numbered strings, since
`torch.compile` traces those. They are valid in one process only, so copied or unpickled metrics make new ones, and
copied or pickled scores have an empty `memo`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums import exact_sum
from xent_metrics.sums.terms import Binned, SharedSum, Terms, check_shared_sum

__all__ = ["own_keys", "remember", "shared_key", "take_sums"]


_shared_keys: dict[tuple[SharedSum, str], str] = {}
_numbers = itertools.count()


def shared_key(shared: SharedSum) -> str:
    """The key of a shared sum, the same for equal ones.

    Raises:
        MetricOptionError: its fields can't tell it from others.
    """
    check_shared_sum(shared)
    told_apart = shared, repr(shared)  # 1 == True, and 0.0 == −0.0
    return _shared_keys.setdefault(told_apart, f"{shared.name} #{next(_numbers)}")


def own_keys(names: Iterable[str]) -> dict[str, str]:
    """New keys, by name, for the own sums of one metric object."""
    return {name: f"{name} #{next(_numbers)}" for name in names}


def remember(scores: TokenScores, key: str, make: Callable[[], Tensor]) -> Tensor:
    """The result of `make`, computed once for these scores; `key` begins with the name of the caller's module."""
    if key not in scores.memo:
        scores.memo[key] = make()
    return scores.memo[key]


def take_sums(scores: TokenScores, terms: Mapping[str, Terms]) -> None:
    """Take the exact sums, each ``(rows, 8)``, that haven't been taken of these scores; alike terms in one pass."""
    missing = {key: term for key, term in terms.items() if key not in scores.memo}
    for group in _alike(missing):
        keys, members = list(group), list(group.values())
        first = members[0]
        stacked = torch.stack([_values(term).reshape(-1) for term in members])
        if isinstance(first, Binned):
            sums = exact_sum.exact_sums_by_bin(stacked, first.bins, first.num_bins)
        else:
            sums = exact_sum.exact_sums(stacked)[:, None]
        scores.memo.update(zip(keys, sums.unbind(), strict=True))


def _alike(terms: Mapping[str, Terms]) -> list[dict[str, Terms]]:
    """Groups of terms of one shape and dtype and over the same bins."""
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
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if isinstance(a, Binned) and isinstance(b, Binned):
        return a.bins is b.bins and a.num_bins == b.num_bins
    return type(a) is type(b) or not (isinstance(a, Binned) or isinstance(b, Binned))


def _values(term: Terms) -> Tensor:
    return term.values if isinstance(term, Binned) else term
