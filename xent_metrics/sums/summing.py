"""SummingMetric: from scores to exact sums to a value.

`exact_sums` takes the sums of scores, in the layout of the packed state; `value_of` makes the value of a state. Neither
changes the metric.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from xent_metrics.errors import MetricOptionError, XentMetricsError
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums import exact_sum
from xent_metrics.sums.checkpoints import CheckpointedMetric
from xent_metrics.sums.definition import MetricDefinition
from xent_metrics.sums.layout import COUNTS, StateLayout, count_terms
from xent_metrics.sums.options import readable
from xent_metrics.sums.shared_sums import own_keys, shared_key
from xent_metrics.sums.taking import by_sequence, take_sums, take_sums_by_sequence
from xent_metrics.sums.terms import Terms

__all__ = ["NanPolicy", "SummingMetric", "take_together"]

#: How rows with nan scores or invalid targets count: "propagate" makes the value nan (or raises), "omit" leaves them out.
NanPolicy = Literal["propagate", "omit"]


class SummingMetric(MetricDefinition, CheckpointedMetric):
    """A `MetricDefinition` with the layout of its state, and what follows from it.

    Attributes:
        layout: which entries of the state hold which sum.
        scoring_key: equal for metrics that one scoring pass can serve.
    """

    layout: StateLayout
    _sum_keys: tuple[str, ...]

    def _made_keys(self) -> tuple[str, ...]:
        """The keys by which scores keep this metric's sums, in the order of the state."""
        shared = {name: shared_key(each) for name, each in self.shared_by_name().items()}
        keys = own_keys(self.layout.rows) | shared
        return (*COUNTS, *(keys[name] for name in self.layout.rows))

    def _made_state_name(self) -> str:
        """A name that says all that is in the state: torchmetrics merges metrics with equal names and first values."""
        return f"sums_{hashlib.sha256(self._made_description().encode()).hexdigest()[:12]}"

    def _made_description(self) -> str:
        """What is in the state, in the same words on all processes."""
        shared = {name: readable(each) for name, each in self.shared_by_name().items()}
        own = f"{type(self).__qualname__} {self.described()}"
        return repr((self.ignore_index, self.layout.rows, [shared.get(name, own) for name in self.layout.rows]))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._sum_keys = self._made_keys()

    def _made_layout(self) -> StateLayout:
        """The layout, as the terms of scores without rows show it."""
        try:
            terms = self.terms(self.empty_scores())
        except XentMetricsError:
            raise
        except Exception as error:
            raise MetricOptionError(
                f"{self.name}: its sums were asked for with scores that have no rows, and raised {type(error).__name__}: "
                f"{error}. They take any number of rows, and read only attributes set in __init__, which calls super().__init__"
            ) from error
        layout = StateLayout.of(terms)
        if reserved := sorted(layout.bins.keys() & set(COUNTS)):
            raise MetricOptionError(f"{self.name}: the sum name {reserved[0]!r} is taken by the base; choose another")
        return layout

    def exact_sums(self, scores: TokenScores) -> Tensor:
        """The exact sums of `scores` in this metric's layout, ``(rows, 8)``."""
        take_together([self], scores)
        return torch.cat([scores.memo[key] for key in self._sum_keys])

    def exact_sums_by_sequence(self, scores: TokenScores) -> Tensor:
        """The exact sums of each sequence in this metric's layout, ``(B, rows, 8)``: what `exact_sums` gives of each.

        Args:
            scores: ``(B, …)``.

        >>> from xent_metrics import CrossEntropy, score_tokens
        >>> metric, scores = CrossEntropy(), score_tokens(torch.randn(3, 5, 7), torch.zeros(3, 5, dtype=torch.long))
        >>> bool((metric.exact_sums_by_sequence(scores)[1] == metric.exact_sums(scores[1])).all())
        True
        """
        take_together([self], scores, each_sequence=True)
        return torch.cat([scores.memo[by_sequence(key)] for key in self._sum_keys], dim=1)

    def missing_terms(self, scores: TokenScores, is_taken: Callable[[str], bool]) -> dict[str, Terms]:
        """The terms, by key, of the sums that haven't been taken of these scores; no others are computed."""
        missing = {key for key in self._sum_keys if not is_taken(key)}
        own_or_shared = zip(self.layout.rows, self._sum_keys[len(COUNTS) :], strict=True)
        wanted = {name: key for name, key in own_or_shared if key in missing}
        shared = self.shared_by_name()
        terms: dict[str, Terms] = {**count_terms(scores)} if COUNTS[0] in missing else {}
        terms |= {key: shared[name].terms(scores) for name, key in wanted.items() if name in shared}
        if wanted.keys() - shared.keys():
            own = self.sums(scores)
            terms |= {key: own[name] for name, key in wanted.items() if name not in shared}
        return terms

    def value_of(self, state: Tensor, *, nan_policy: NanPolicy = "propagate") -> Tensor:
        """The metric's value for a packed state, 0-d on the state's device: float64, or float32 where there is no float64."""
        return self.value(self.unpack(exact_sum.to_float(state, finite_only=nan_policy == "omit")))

    def unpack(self, values: Tensor) -> dict[str, Tensor]:
        """``(rows,)`` floats by the name of the sum."""
        return self.layout.unpack(values)

    def pack(self, named: Mapping[str, Tensor]) -> Tensor:
        """Packed states ``(…, rows, 8)`` of sums by name, each ``(…)`` or ``(…, num_bins)``: what `unpack` undoes.

        For sums that were logged elsewhere. How many rows counted, were ignored or were invalid is not among them.
        """
        return self.layout.pack(named)

    def totals(self) -> dict[str, Tensor]:
        """The sums by name, float64 on the CPU, as `value` takes them in `compute`; waits for the device."""
        return self.unpack(exact_sum.to_float(self.state.cpu()))

    def counts(self) -> dict[str, int]:
        """How many rows counted, were ignored, had invalid targets, gave nan, and gave infinite terms."""
        return self.layout.counts(self.state)


def take_together(metrics: Iterable[SummingMetric], scores: TokenScores, *, each_sequence: bool = False) -> None:
    """Take all sums of these metrics that haven't been taken of the scores, of all rows or of each sequence."""
    kept_as, take = (by_sequence, take_sums_by_sequence) if each_sequence else (str, take_sums)
    terms: dict[str, Terms] = {}

    def is_taken(key: str) -> bool:
        return key in terms or kept_as(key) in scores.memo

    for metric in metrics:
        metric.check_scores(scores)
        terms.update(metric.missing_terms(scores, is_taken))
    take(scores, terms)
