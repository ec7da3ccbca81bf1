"""TokenMetric: a metric is a view on named exact sums, with torchmetrics' whole contract around it.

    class MeanNll(RatioMetric):
        name = "mean_nll"
        def per_token(self, scores):
            return scores.nll

A subclass says which scores it `requires`, turns a `TokenScores` into named sums, and turns the sums into one value.
Everything else is here: one packed int64 state ``(sums, 8)``, merged by addition; one all_reduce when processes are
synced; torchmetrics' forward, reset, clone, pickle, state_dict and `.to`, which leave integers as they are.

Who syncs: torchmetrics' `compute`, as packed_metric.py and distributed.py say.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import warnings
from abc import ABCMeta, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from xent_metrics.errors import (
    CapacityError,
    InvalidInputError,
    InvalidTargetError,
    MetricOptionError,
    MissingExtraError,
    SyncError,
    XentMetricsError,
)
from xent_metrics.scoring.score import score_tokens
from xent_metrics.scoring.scores import ExtraScore, RowKind, TokenScores
from xent_metrics.sums import exact_sum
from xent_metrics.sums.options import check_options, options_of, readable
from xent_metrics.sums.packed import PackedMetric

__all__ = ["Binned", "NanPolicy", "RatioMetric", "TokenMetric"]

#: What rows of nan and invalid targets do to a value: make it nan (or an error), or be left out; as in SciPy.
NanPolicy = Literal["propagate", "omit"]

#: Counted by every metric, so that a nan has its count beside it.
_COUNTS = ("counted", "ignored", "invalid_targets")


@dataclass(frozen=True)
class Binned:
    """Values that are summed by bin: `bins` holds an index in ``[0, num_bins)`` for each of `values`."""

    values: Tensor
    bins: Tensor
    num_bins: int


class _LaidOut(ABCMeta):
    """Lays the state out after `__init__`, so that a subclass may set its options before or after `super().__init__()`."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        check_options(cls, kwargs)
        metric = super().__call__(*args, **kwargs)
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        bound = signature.bind(metric, *args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= given.pop(parameter.name)
        metric._lay_out({name: given.get(name, option.default) for name, option in cls.options().items()})  # type: ignore[attr-defined]
        return metric


class TokenMetric(PackedMetric, metaclass=_LaidOut):
    """The base of every metric.

    Args:
        ignore_index: the target that doesn't count.
        kwargs: torchmetrics' own (`process_group`, `dist_sync_on_step`, `dist_sync_fn` …).
    """

    name: ClassVar[str]
    formula: ClassVar[str] = ""
    value_unit: str = ""  # an instance's may follow its options
    reference: ClassVar[str] = ""
    requires: frozenset[str] = frozenset({"nll"})
    row_kinds: ClassVar[frozenset[RowKind]] = frozenset({"token", "choice"})
    #: Where its sampling error is symmetric: "log" for what is positive and exponential, such as a perplexity.
    interval_scale: ClassVar[Literal["linear", "log"]] = "linear"
    has_standard_error: ClassVar[bool] = True  # False where the value has no slope in the sums

    is_differentiable = False
    higher_is_better: bool | None = False
    full_state_update = False

    def __init__(self, *, ignore_index: int = -100, **kwargs: Any) -> None:
        if kwargs.setdefault("compute_with_cache", False):
            raise MetricOptionError(
                "compute_with_cache=True would keep values on some processes and not on others, which would then wait for "
                "each other; leave it out"
            )
        super().__init__(**kwargs)
        if not isinstance(ignore_index, int):
            raise MetricOptionError(
                f"ignore_index is an int; got {ignore_index!r}. Leave it out where every target counts"
            )
        self.ignore_index = ignore_index

    # What a subclass says of itself.

    @abstractmethod
    def sums(self, scores: TokenScores) -> Mapping[str, Tensor | Binned]:
        """The values to be summed, by the sum's name, which carries every option that changes what is added."""

    @abstractmethod
    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        """The metric, a 0-d float64, from the sums: each 0-d float64, or ``(num_bins,)`` for a `Binned` one."""

    def scoring_options(self) -> dict[str, Any]:
        """What this metric adds to `score_tokens` besides `ignore_index`."""
        return {}

    def extra_scores(self) -> Mapping[str, ExtraScore]:
        """Extra scores that the metric needs of each row, by a name that carries every option that changes them."""
        return {}

    # Options.

    @classmethod
    def options(cls) -> dict[str, inspect.Parameter]:
        """The options that the metric takes, its own and its bases', without torchmetrics' own keywords."""
        return options_of(cls, until=Metric)

    def described(self, *leave_out: str) -> str:
        """The metric's name with its options, for the names of sums: ``focal_cross_entropy(gamma=2.0)``."""
        shown = {k: v for k, v in self._readable_options.items() if k not in {"ignore_index", *leave_out}}
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in sorted(shown.items()))})"

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in self._readable_options.items())

    # The state: rows of exact sums, `_COUNTS` first.

    def _lay_out(self, given: Mapping[str, Any]) -> None:
        if not isinstance(getattr(self, "name", None), str):
            raise MetricOptionError(f'{type(self).__name__} has no name; set the class attribute `name = "…"`')
        # An attribute goes before what the constructor got: a subclass may fix a base's option, or make a table of it.
        self._options = {k: v if hasattr(TokenMetric, k) else getattr(self, k, v) for k, v in given.items()}
        # Read once, here: a tensor's content is looked at on the host, which an update must never do.
        self._readable_options = {k: readable(v) for k, v in self._options.items()}
        self.scoring_key = ", ".join(f"{k}={readable(v)}" for k, v in self.scoring_options().items())
        try:
            sums = self.sums(_no_rows(self.requires, self.extra_scores()))
        except XentMetricsError:
            raise
        except Exception as error:
            raise MetricOptionError(
                f"{self.name}: what it sums was asked of scores without rows, and raised {type(error).__name__}: {error}. "
                "It takes any number of rows, and what it reads of itself is set in __init__, which calls super().__init__"
            ) from error
        self._layout = {name: value.num_bins if isinstance(value, Binned) else None for name, value in sums.items()}
        values = {name: value.values if isinstance(value, Binned) else value for name, value in sums.items()}
        self._values_per_row = {name: value.shape[1:].numel() for name, value in values.items()}
        if reserved := sorted(self._layout.keys() & set(_COUNTS)):
            raise MetricOptionError(f"{self.name}: the sum name {reserved[0]!r} is taken by the base; choose another")
        # torchmetrics' compute groups merge metrics whose state names and first values agree: the name says what is in it.
        content = repr((self.ignore_index, self._rows()))
        self._state_name = f"sums_{hashlib.sha256(content.encode()).hexdigest()[:12]}"
        size = len(_COUNTS) + sum(self._rows().values())
        self.add_state(
            self._state_name,
            torch.zeros(size, exact_sum.ROW, dtype=torch.int64),
            dist_reduce_fx=exact_sum.merge,
        )

    def _rows(self) -> dict[str, int]:
        """How many rows of the state each sum has; sorted, for metrics of the same sums to have the same state."""
        return {name: bins or 1 for name, bins in sorted(self._layout.items())}

    def exact_sums(self, scores: TokenScores) -> Tensor:
        """The exact sums of `scores` in this metric's layout, ``(rows, 8)``; its state is not touched."""
        scores.require({*self.requires, *self.extra_scores()}, row_kinds=self.row_kinds, metric=self.name)
        if scores.ignore_index not in (None, self.ignore_index):
            raise InvalidInputError(
                f"{self.name} has ignore_index={self.ignore_index}; got scores made with ignore_index={scores.ignore_index}. "
                f"Pass ignore_index={self.ignore_index} to score_tokens, or {scores.ignore_index} to the metric"
            )
        names = (*_COUNTS, *self._rows())
        if any(name not in scores.sums for name in names):
            _take_sums(scores, _counts(scores) | dict(self.sums(scores)))
        return torch.cat([scores.sums[name] for name in names])

    def value_of(self, state: Tensor, *, nan_policy: NanPolicy = "propagate") -> Tensor:
        """The metric's value for a packed state, a 0-d float64 on the state's device."""
        return self.value(self.unpack(exact_sum.to_float(state, finite_only=nan_policy == "omit")))

    def unpack(self, values: Tensor) -> dict[str, Tensor]:
        """``(rows,)`` float64 by the name of the sum."""
        rows = self._rows()
        named = dict(zip(rows, torch.split(values[len(_COUNTS) :], list(rows.values())), strict=True))
        return {name: named[name][0] if bins is None else named[name] for name, bins in self._layout.items()}

    def pack(self, named: Mapping[str, Tensor]) -> Tensor:
        """Packed states ``(…, rows, 8)`` of sums by name, each ``(…)`` or ``(…, num_bins)``: what `unpack` undoes.

        For sums that were written down elsewhere; how many rows counted, were ignored or invalid is not among them.
        """
        columns = [named[name] if self._layout[name] else named[name][..., None] for name in self._rows()]
        values = torch.cat([column.double() for column in columns], dim=-1)
        counts = values.new_zeros(*values.shape[:-1], len(_COUNTS))
        return exact_sum.exact(torch.cat([counts, values], dim=-1))

    def counts(self) -> dict[str, int]:
        """How many rows counted, were ignored, had invalid targets, gave nan, and gave infinite terms."""
        rows = self.state.cpu()
        numbers = {name: int(rows[i, 2] + (rows[i, 3] << 32)) for i, name in enumerate(_COUNTS)}
        sums = dict(zip(self._rows(), torch.split(rows[len(_COUNTS) :], list(self._rows().values())), strict=True))
        terms = {"nan": slice(4, 5), "infinite": slice(5, 7)}
        return numbers | {
            kind: max(math.ceil(int(rows[:, at].sum()) / self._values_per_row[name]) for name, rows in sums.items())
            for kind, at in terms.items()
        }

    # torchmetrics' contract.

    def update(self, logits: Any, target: Any = None, *, weight: Any = None) -> None:
        """Add a batch: logits ``(…, V)`` and targets ``(…)``, or a `TokenScores`."""
        if self._is_synced:
            raise SyncError(
                f"{self.name} holds the sums of all processes, to which nothing can be added; unsync it first"
            )
        scores = self.score(logits, target, weight=weight)
        delta = self.exact_sums(scores).to(self.state.device)
        if scores.replicas and not self._counts_here(scores.replicas):
            delta = torch.zeros_like(delta)
        self._set_state(exact_sum.carry(self.state + delta))

    def score(
        self,
        logits: Any,
        target: Any = None,
        *,
        weight: Any = None,
        extra_scores: Mapping[str, ExtraScore] | None = None,
    ) -> TokenScores:
        """The scores that `update` would add, by this metric's own options (with `extra_scores` ones for other metrics)."""
        if isinstance(logits, TokenScores):
            if target is not None or weight is not None:
                raise InvalidInputError("a TokenScores has its targets and weights in it; pass it alone")
            return logits
        if target is None:
            raise InvalidInputError("expected update(logits, target) or update(scores); got logits without a target")
        return score_tokens(
            logits,
            target,
            ignore_index=self.ignore_index,
            weight=weight,
            extra_scores={**self.extra_scores(), **(extra_scores or {})},
            **self.scoring_options(),
        )

    def compute(self, *, nan_policy: NanPolicy = "propagate") -> Tensor:
        """The value over all that was added, on all processes: a 0-d float64; nan where nothing counted.

        Args:
            nan_policy: "omit" leaves the rows whose nll is nan or whose target is invalid out of all sums: the value is that
                of the other rows. A row whose nll is infinite stays one (it is a wrong prediction, to an accuracy): of it, only
                the terms that are infinite are left out. On all processes alike; how many: `counts`, inside `sync_context`
                over all processes.

        Raises:
            InvalidTargetError: targets were out of range. CapacityError: a sum left the range in which it is exact.
            SyncError: another process died, hung or never came; the local sums are what they were.
        """
        if not self._in_forward:  # the value of one batch is returned without waiting for the device
            self._check(nan_policy)
        return self.value_of(self.state, nan_policy=nan_policy)

    def _check(self, nan_policy: NanPolicy) -> None:
        if not unusual([self.state]):
            return
        counts = self.counts()
        invalid = counts["invalid_targets"]
        if invalid and nan_policy != "omit":
            raise InvalidTargetError(
                f"{self.name}: {invalid} targets were neither a class in [0, V) nor ignore_index={self.ignore_index} "
                "(or, for soft targets, not a distribution), or had a weight below 0. Mask what should not count with "
                "ignore_index; `compute(nan_policy='omit')` gives the value without them"
            )
        if bool(exact_sum.overflowed(self.state)):
            raise CapacityError(f"{self.name}: a sum left ±2^78, the range in which it is exact")
        if counts["nan"] and nan_policy != "omit":
            warnings.warn(
                f"{self.name}: {counts['nan']} of {counts['counted']} rows gave nan; `compute(nan_policy='omit')` sums the rest",
                stacklevel=2,
            )

    def forward(self, logits: Any, target: Any = None, *, weight: Any = None) -> Any:
        """Add a batch and return its own value, which `dist_sync_on_step` makes that of all processes' batches."""
        scores = self.score(logits, target, weight=weight)
        batch = self.exact_sums(scores)  # what can't be scored raises here, before anything is changed
        if not (self.dist_sync_on_step or self._is_synced):
            self.update(scores)
            value = self.value_of(batch.to(self.state.device))
            self._forward_cache: Any = value
            return value
        self._in_forward = True
        try:
            return super().forward(scores)
        finally:
            self._in_forward = False

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add another metric's state (the same class and options) to this one's, exactly."""
        incoming: dict[str, Any] = incoming_state.metric_state if isinstance(incoming_state, Metric) else incoming_state
        if self._state_name not in incoming:
            raise MetricOptionError(
                f"{self!r} can't take the state of {incoming_state!r}: their sums differ. Build both with the same options"
            )
        self._update_count += incoming_state._update_count if isinstance(incoming_state, Metric) else 1
        self._computed = None
        self._set_state(exact_sum.merge(torch.stack([self.state, incoming[self._state_name].to(self.state.device)])))

    def set_dtype(self, dst_type: str | torch.dtype) -> TokenMetric:
        """Nothing: sums are integers and values are float64, whatever the model's dtype."""
        return self

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one value or a sequence of them over steps, labelled with the unit (needs the `plots` extra)."""
        try:
            figure, axes = self._plot(val, ax)
        except ModuleNotFoundError as error:
            raise MissingExtraError("plot needs matplotlib: pip install 'xent-metrics[plots]'") from error
        assert not isinstance(axes, np.ndarray)  # one value, one axes
        axes.set_title(self.name.replace("_", " "))
        axes.set_ylabel(self.value_unit)
        return figure, axes


class RatioMetric(TokenMetric):
    """Σ per_token · weight / Σ denominator · weight: one short method makes a metric.

    >>> from xent_metrics import RatioMetric
    >>> class MeanProbability(RatioMetric):
    ...     name = "mean_probability"
    ...     def per_token(self, scores):
    ...         return scores.prob
    >>> metric = MeanProbability()
    >>> metric.update(torch.zeros(2, 4), torch.tensor([0, 3]))
    >>> metric.compute()
    tensor(0.2500, dtype=torch.float64)
    """

    @abstractmethod
    def per_token(self, scores: TokenScores) -> Tensor:
        """The numerator's term of each row, the shape of ``scores.nll``."""

    def denominator(self, scores: TokenScores) -> Tensor:
        """The denominator's term of each row; 1 unless overridden."""
        return torch.ones_like(scores.counted, dtype=torch.int64)

    def sum_names(self) -> tuple[str, str]:
        """The names of numerator and denominator; equal names are the same sum, so they carry the options."""
        return f"{self.described()}.numerator", f"{self.described()}.denominator"

    def sums(self, scores: TokenScores) -> Mapping[str, Tensor | Binned]:
        terms = {"per_token": self.per_token(scores), "denominator": self.denominator(scores)}
        for method, term in terms.items():
            if not isinstance(term, Tensor) or term.shape != scores.counted.shape:
                got = tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__
                raise InvalidInputError(
                    f"{self.name}: {method} gives a term of each row, here a tensor {tuple(scores.counted.shape)}; got {got}"
                )
        return {name: scores.weighted(term) for name, term in zip(self.sum_names(), terms.values(), strict=True)}

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        numerator, denominator = self.sum_names()
        return sums[numerator] / sums[denominator]


def unusual(states: Sequence[Tensor]) -> bool:
    """Whether any of the states, on one device, has invalid targets, nan, infinities or a sum out of range: one host read."""
    invalid = _COUNTS.index("invalid_targets")
    told = [part for state in states for part in (state[invalid, 2:4], state[:, 4:].reshape(-1))]
    return bool(torch.cat(told).any())


def _take_sums(scores: TokenScores, named: Mapping[str, Tensor | Binned]) -> None:
    """Take the exact sums, each ``(rows, 8)``, that other metrics haven't taken of the same scores; alike ones at once."""
    together: list[tuple[Tensor | None, int, list[tuple[str, Tensor]]]] = []  # bins, how many, values by name
    for name, value in named.items():
        if name in scores.sums:
            continue
        values, bins, num_bins = (
            (value.values, value.bins, value.num_bins) if isinstance(value, Binned) else (value, None, 1)
        )
        for other_bins, other_num, group in together:
            first = group[0][1]
            alike = values.shape == first.shape and values.dtype == first.dtype
            if other_bins is bins and other_num == num_bins and alike:
                group.append((name, values))
                break
        else:
            together.append((bins, num_bins, [(name, values)]))
    for bins, num_bins, group in together:
        stacked = torch.stack([values.reshape(-1) for _, values in group])
        if bins is not None:
            sums = exact_sum.exact_sums_by_bin(stacked, bins, num_bins)
        else:
            sums = exact_sum.exact_sums(stacked)[:, None]
        scores.sums.update(zip([name for name, _ in group], sums.unbind(), strict=True))


def _counts(scores: TokenScores) -> dict[str, Tensor | Binned]:
    invalid = torch.zeros_like(scores.counted) if scores.invalid is None else scores.invalid
    return dict(zip(_COUNTS, (scores.counted, ~scores.counted, invalid), strict=True))


def _no_rows(requires: frozenset[str], extra_scores: Mapping[str, ExtraScore]) -> TokenScores:
    """Scores with every field and no rows: what a metric makes of them is its layout."""
    real, whole, truth = torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
    scores = TokenScores(
        nll=real, counted=truth, confidence=real, correct=truth, target=whole, num_bytes=whole, num_words=whole,
        loss=real, loss_weight=real, invalid=truth,
    )  # fmt: skip
    others = dict.fromkeys(requires - scores.fields().keys() - {"prob"}, real)
    return replace(
        scores, extra_scores=others | {name: torch.zeros(0, *score.shape) for name, score in extra_scores.items()}
    )
