"""TokenMetric: a `MetricDefinition` with exact, mergeable state and torchmetrics' whole contract.

The state is one packed int64 tensor ``(rows, 8)`` of exact sums. States merge by addition, one all_reduce syncs them, and
torchmetrics' forward, reset, clone, pickle, state_dict and `.to` work and leave the integers as they are.

Who syncs: torchmetrics' `compute`, see packed.py and sync.py.
"""

from __future__ import annotations

import hashlib
import inspect
import warnings
from abc import ABCMeta
from collections.abc import Mapping, Sequence
from typing import Any, Literal

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
from xent_metrics.scoring.scores import ExtraScore, TokenScores
from xent_metrics.sums import exact_sum
from xent_metrics.sums.definition import MetricDefinition
from xent_metrics.sums.layout import COUNTS, StateLayout, count_terms
from xent_metrics.sums.options import check_options
from xent_metrics.sums.packed import PackedMetric
from xent_metrics.sums.taking import own_keys, shared_key, take_sums
from xent_metrics.sums.terms import Terms

__all__ = ["NanPolicy", "TokenMetric", "needs_attention"]

#: What rows of nan and invalid targets do to a value: make it nan (or raise), or be left out; named as in SciPy.
NanPolicy = Literal["propagate", "omit"]


class _LaidOut(ABCMeta):
    """Lays out the state after `__init__`, so that a subclass may set its options before or after `super().__init__()`."""

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


class TokenMetric(MetricDefinition, PackedMetric, metaclass=_LaidOut):
    """The base of every metric; see `MetricDefinition` for what a subclass defines.

    Args:
        ignore_index: the target that doesn't count.
        kwargs: those of `torchmetrics.Metric` (`process_group`, `dist_sync_on_step`, `dist_sync_fn` …).

    Attributes:
        layout: which rows of the state hold which sum.
        scoring_key: equal for metrics that one scoring pass can serve.
    """

    is_differentiable = False
    higher_is_better: bool | None = False
    full_state_update = False
    layout: StateLayout
    _sum_keys: tuple[str, ...]

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

    # The state's layout.

    def _lay_out(self, given: Mapping[str, Any]) -> None:
        """Fix the options and the layout of the state, and make the state."""
        if not isinstance(getattr(self, "name", None), str):
            raise MetricOptionError(f'{type(self).__name__} has no name; set the class attribute `name = "…"`')
        self._take_options(given, base=TokenMetric)
        self.layout = self._made_layout()
        self._sum_keys = self._made_keys()
        self._state_name = self._made_state_name()
        empty = torch.zeros(self.layout.size, exact_sum.ROW, dtype=torch.int64)
        self.add_state(self._state_name, empty, dist_reduce_fx=exact_sum.merge)

    def _made_keys(self) -> tuple[str, ...]:
        """The keys by which scores keep this metric's sums, in the order of the state."""
        shared = {name: shared_key(each) for name, each in self.shared_by_name().items()}
        keys = own_keys(self.layout.rows) | shared
        return (*COUNTS, *(keys[name] for name in self.layout.rows))

    def _made_state_name(self) -> str:
        """A name that says all that is in the state: torchmetrics merges metrics with equal names and first values."""
        shared = {name: repr(each) for name, each in self.shared_by_name().items()}
        own = f"{type(self).__qualname__} {self.described()}"
        content = repr((self.ignore_index, self.layout.rows, [shared.get(name, own) for name in self.layout.rows]))
        return f"sums_{hashlib.sha256(content.encode()).hexdigest()[:12]}"

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

    # From scores to sums to a value, without touching the metric's own state.

    def exact_sums(self, scores: TokenScores) -> Tensor:
        """The exact sums of `scores` in this metric's layout, ``(rows, 8)``."""
        self.check_scores(scores)
        if any(key not in scores.memo for key in self._sum_keys):
            named = self.terms(scores)
            own = zip(self._sum_keys[len(COUNTS) :], (named[name] for name in self.layout.rows), strict=True)
            terms: dict[str, Terms] = {**count_terms(scores)}
            take_sums(scores, terms | dict(own))
        return torch.cat([scores.memo[key] for key in self._sum_keys])

    def value_of(self, state: Tensor, *, nan_policy: NanPolicy = "propagate") -> Tensor:
        """The metric's value for a packed state, a 0-d float64 on the state's device."""
        return self.value(self.unpack(exact_sum.to_float(state, finite_only=nan_policy == "omit")))

    def unpack(self, values: Tensor) -> dict[str, Tensor]:
        """``(rows,)`` float64 by the name of the sum."""
        return self.layout.unpack(values)

    def pack(self, named: Mapping[str, Tensor]) -> Tensor:
        """Packed states ``(…, rows, 8)`` of sums by name, each ``(…)`` or ``(…, num_bins)``: what `unpack` undoes.

        For sums that were logged elsewhere. How many rows counted, were ignored or were invalid is not among them.
        """
        return self.layout.pack(named)

    def counts(self) -> dict[str, int]:
        """How many rows counted, were ignored, had invalid targets, gave nan, and gave infinite terms."""
        return self.layout.counts(self.state)

    # The contract of torchmetrics.

    def score(
        self,
        logits: Any,
        target: Any = None,
        *,
        weight: Any = None,
        extra_scores: Mapping[str, ExtraScore] | None = None,
    ) -> TokenScores:
        """The scores that `update` would add, by this metric's own options (and `extra_scores` for other metrics)."""
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

    def compute(self, *, nan_policy: NanPolicy = "propagate") -> Tensor:
        """The value over everything added, on all processes: a 0-d float64; nan if nothing counted.

        Args:
            nan_policy: "omit" leaves the rows with nan scores or invalid targets out of every sum, on all processes: the
                value is that of the other rows. A row with an infinite nll stays (to an accuracy it is a wrong
                prediction); only its infinite terms are left out. `counts` says how many rows there were.

        Raises:
            InvalidTargetError: targets were out of range.
            CapacityError: a sum left the range in which it is exact.
            SyncError: another process died, hung or never came; the local sums are unchanged.
        """
        if not self._in_forward:  # the value of one batch is returned without waiting for the device
            self._check(nan_policy)
        return self.value_of(self.state, nan_policy=nan_policy)

    def _check(self, nan_policy: NanPolicy) -> None:
        if not needs_attention([self.state]):
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
                f"{self.name}: {counts['nan']} of {counts['counted']} rows gave nan; `compute(nan_policy='omit')` sums the "
                "rest",
                stacklevel=2,
            )

    def forward(self, logits: Any, target: Any = None, *, weight: Any = None) -> Any:
        """Add a batch and return its own value; with `dist_sync_on_step`, that of all processes' batches."""
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
        """Add the state of another metric, of the same class and options, to this one's, exactly."""
        incoming: dict[str, Any] = incoming_state.metric_state if isinstance(incoming_state, Metric) else incoming_state
        if self._state_name not in incoming:
            raise MetricOptionError(
                f"{self!r} can't take the state of {incoming_state!r}: their sums differ. Build both with the same options"
            )
        self._update_count += incoming_state._update_count if isinstance(incoming_state, Metric) else 1
        self._computed = None
        self._set_state(exact_sum.merge(torch.stack([self.state, incoming[self._state_name].to(self.state.device)])))

    def set_dtype(self, dst_type: str | torch.dtype) -> TokenMetric:
        """Do nothing: sums are integers and values are float64, whatever the model's dtype."""
        return self

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one value, or a sequence of them over steps, labelled with the unit.

        Plotted by the private `Metric._plot`, read in torchmetrics 1.9; its public `plot` of a subclass calls it alike.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        try:
            figure, axes = self._plot(val, ax)
        except ModuleNotFoundError as error:
            raise MissingExtraError("plot needs matplotlib: pip install 'xent-metrics[plots]'") from error
        assert not isinstance(axes, np.ndarray)  # one value, one axes
        axes.set_title(self.name.replace("_", " "))
        axes.set_ylabel(self.value_unit)
        return figure, axes


def needs_attention(states: Sequence[Tensor]) -> bool:
    """True if a state, of those on one device, has invalid targets, nan, infinities or a sum out of range: one host read."""
    invalid = COUNTS.index("invalid_targets")
    parts = [part for state in states for part in (state[invalid, 2:4], state[:, 4:].reshape(-1))]
    return bool(torch.cat(parts).any())
