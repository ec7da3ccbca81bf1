"""Many runs compared: each with the first, or each with each, as one family of tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from xent_metrics.analysis.run_comparison import RunComparison, compare_runs, correct_together
from xent_metrics.analysis.runs import Run
from xent_metrics.errors import ComparisonError

__all__ = ["Pair", "compare_all", "run_letters"]


@dataclass(frozen=True)
class Pair:
    """Two of several runs, by their letters; `rows` compare the second with the first, `reason` says why there are none."""

    first: str
    second: str
    rows: list[RunComparison]
    reason: str | None = None

    def letter_of(self, better: str | None) -> str | None:
        """The letter of the better run, of a comparison's "A" or "B"."""
        return {"A": self.first, "B": self.second}.get(better or "")


def compare_all(
    runs: Sequence[Run], *, baseline: bool = False, num_resamples: int = 9999, shared_documents: bool = False
) -> list[Pair]:
    """Compare runs in pairs, with p values corrected for all pairs, tasks and metrics together.

    Args:
        runs: called A, B, C … in this order.
        baseline: compare each run with the first only.
        num_resamples: the number of random swaps of each permutation test.
        shared_documents: compare each pair on the documents that both have.

    Returns:
        The pairs; those that share no task have a reason in place of rows.
    """
    pairs = []
    for (first, a), (second, b) in combinations(zip(run_letters(len(runs)), runs, strict=True), 2):
        if not baseline or a is runs[0]:
            try:
                rows = compare_runs(
                    a, b, num_resamples=num_resamples, shared_documents=shared_documents, names=(first, second)
                )
                pairs.append(Pair(first, second, rows))
            except ComparisonError as error:
                pairs.append(Pair(first, second, [], error.message))
    rows_together = iter(correct_together([row for pair in pairs for row in pair.rows]))
    return [replace(pair, rows=[next(rows_together) for _ in pair.rows]) for pair in pairs]


def run_letters(count: int) -> list[str]:
    """What runs are called: A to Z, then AA, AB and so on.

    >>> run_letters(28)[24:]
    ['Y', 'Z', 'AA', 'AB']
    """
    return [_letters(number) for number in range(count)]


def _letters(number: int) -> str:
    prefix, last = divmod(number, 26)
    return (_letters(prefix - 1) if prefix else "") + chr(ord("A") + last)
