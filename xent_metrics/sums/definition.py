"""MetricDefinition: what a metric's class defines, without any state.

    class MeanNll(TokenMetric):
        name = "mean_nll"
        def shared_sums(self):
            return NATS, TOKENS
        def value(self, sums):
            return sums["nats"] / sums["tokens"]

A metric says which scores it `requires`, which sums it takes of them, and how the sums make one value.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor
from torchmetrics import Metric

from xent_metrics.errors import InvalidInputError, MetricOptionError
from xent_metrics.scoring.scores import ExtraScore, RowKind, TokenScores
from xent_metrics.sums.options import options_of, readable
from xent_metrics.sums.shared_sums import SharedSum
from xent_metrics.sums.terms import Terms

__all__ = ["MetricDefinition"]


class MetricDefinition(ABC):
    """What a metric is.

    Attributes:
        name: the registered name.
        formula, value_unit, reference: for lists and documentation; an instance's `value_unit` may follow its options.
        latex: the formula in LaTeX, for the metric's page.
        use_when, hides: what the metric is for, and what its value doesn't show, in a sentence or a few each.
        requires: the fields of `TokenScores` that the metric reads.
        row_kinds: the kinds of row that it is defined over.
        interval_scale: the scale on which its sampling error is symmetric: "log" for perplexities and their like.
        value_range: the least and the largest value it can have; intervals stay within.
        has_standard_error: False if the value has no slope in the sums, as for a quantile.
    """

    name: ClassVar[str]
    formula: ClassVar[str] = ""
    latex: ClassVar[str] = ""
    value_unit: str = ""
    reference: ClassVar[str] = ""
    use_when: ClassVar[str] = ""
    hides: ClassVar[str] = ""
    requires: frozenset[str] = frozenset({"nll"})
    row_kinds: ClassVar[frozenset[RowKind]] = frozenset({"token", "choice"})
    interval_scale: ClassVar[Literal["linear", "log"]] = "linear"
    value_range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    has_standard_error: ClassVar[bool] = True

    ignore_index: int
    _options: Mapping[str, Any]
    _readable_options: Mapping[str, str]

    def shared_sums(self) -> Sequence[SharedSum]:
        """The sums that the metric shares with others; none by default."""
        return ()

    def sums(self, scores: TokenScores) -> Mapping[str, Terms]:
        """The terms of the metric's own sums, by name; none by default.

        A name carries every option that changes the terms. Whatever the name, no other metric gets this sum.
        """
        return {}

    @abstractmethod
    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        """The metric, 0-d, from its sums by name: each 0-d float64, or ``(num_bins,)`` for a `Binned` one.

        `compute` calls it with sums on the CPU, `forward` with sums on the metric's device, in float32 if that has no float64.
        """

    def scoring_options(self) -> dict[str, Any]:
        """The options that this metric passes to `score_tokens`, besides `ignore_index`."""
        return {}

    def extra_scores(self) -> Mapping[str, ExtraScore]:
        """Extra scores that the metric needs of each row; their names carry every option that changes them."""
        return {}

    def shared_by_name(self) -> dict[str, SharedSum]:
        """The shared sums by name.

        Raises:
            MetricOptionError: two of them have one name.
        """
        found: dict[str, SharedSum] = {}
        for each in self.shared_sums():
            if each.name in found and found[each.name] != each:
                raise MetricOptionError(f"{self.name}: {found[each.name]} and {each} have one name, {each.name!r}")
            found[each.name] = each
        return found

    def terms(self, scores: TokenScores) -> dict[str, Terms]:
        """The terms of all the metric's sums, shared and its own, by name."""
        shared = {name: each.terms(scores) for name, each in self.shared_by_name().items()}
        own = dict(self.sums(scores))
        if twice := sorted(shared.keys() & own.keys()):
            raise MetricOptionError(f"{self.name}: the sum name {twice[0]!r} is that of a shared sum; choose another")
        return shared | own

    def empty_scores(self) -> TokenScores:
        """Scores without rows, with every score that the metric needs: their terms show its layout."""
        known = TokenScores.empty().fields().keys() | {"prob"}
        others = dict.fromkeys(self.requires - known, ExtraScore(lambda log_prob, index: log_prob[:, 0]))
        row_kind: RowKind = "token" if "token" in self.row_kinds else min(self.row_kinds)
        return TokenScores.empty(row_kind=row_kind, extra_scores={**others, **self.extra_scores()})

    def check_scores(self, scores: TokenScores) -> None:
        """Raise unless the metric can take these scores.

        Raises:
            MissingScoreError: a field or an extra score is missing, or a row is of another kind.
            InvalidInputError: the scores were made with another `ignore_index`.
        """
        scores.require({*self.requires, *self.extra_scores()}, row_kinds=self.row_kinds, metric=self.name)
        if scores.ignore_index not in (None, self.ignore_index):
            raise InvalidInputError(
                f"{self.name} has ignore_index={self.ignore_index}; got scores made with ignore_index={scores.ignore_index}. "
                f"Pass ignore_index={self.ignore_index} to score_tokens, or {scores.ignore_index} to the metric"
            )

    @classmethod
    def options(cls) -> dict[str, inspect.Parameter]:
        """The options that the metric takes, its own and its bases', without those of `torchmetrics.Metric`."""
        return options_of(cls, until=Metric)

    def given_options(self) -> dict[str, Any]:
        """The options that this metric was built with, by name."""
        return dict(self._options)

    def described(self, *leave_out: str) -> str:
        """The metric's name with its options, for the names of sums: ``focal_cross_entropy(gamma=2.0)``."""
        shown = {k: v for k, v in self._readable_options.items() if k not in {"ignore_index", *leave_out}}
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in sorted(shown.items()))})"

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return ", ".join(f"{k}={v}" for k, v in self._readable_options.items())

    def _take_options(self, given: Mapping[str, Any], base: type) -> None:
        """Keep the options for `described`; called once, after `__init__`."""
        # Same-named attributes override constructor arguments: a subclass may fix a base's option, or make a table of it.
        # An attribute that every metric has, such as `counts`, is no option.
        self._options = {k: v if hasattr(base, k) else getattr(self, k, v) for k, v in given.items()}
        # Read here, once: a tensor's content is read on the host, which an update must never do.
        self._readable_options = {k: readable(v) for k, v in self._options.items()}
        self.scoring_key = ", ".join(f"{k}={readable(v)}" for k, v in self.scoring_options().items())
