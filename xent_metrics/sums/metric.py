"""TokenMetric: a `MetricDefinition` with exact, mergeable state and torchmetrics' whole contract.

The state is one packed int64 tensor ``(rows, 8)`` of exact sums. States merge by addition, one all_reduce syncs them, and
torchmetrics' forward, reset, clone, pickle, state_dict and `.to` work and leave the integers as they are.

Who syncs: torchmetrics' `compute`, see packed.py and sync.py.
"""

from __future__ import annotations

import inspect
import warnings
from abc import ABCMeta
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from xent_metrics.errors import (
    CapacityError,
    InvalidInputError,
    InvalidTargetError,
    MetricOptionError,
    SyncError,
)
from xent_metrics.plots import pyplot_axes
from xent_metrics.scoring.score import score_tokens
from xent_metrics.scoring.scores import ExtraScore, TokenScores
from xent_metrics.sums import exact_sum
from xent_metrics.sums.layout import COUNTS
from xent_metrics.sums.options import check_options
from xent_metrics.sums.packed import one_at_a_time
from xent_metrics.sums.placement import refuse_capture, warn_of_waiting, with_memory
from xent_metrics.sums.shared_sums import TOKENS
from xent_metrics.sums.summing import NanPolicy, SummingMetric

__all__ = ["NanPolicy", "TokenMetric", "needs_attention"]

#: A mean term of which rounding to 2^-64 may change the sixth digit.
_LEAST = exact_sum.FINEST * 2**19


class _LaidOut(ABCMeta):
    """Lays out the state after `__init__`, so that a subclass may set its options before or after `super().__init__()`."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        check_options(cls, kwargs)
        with with_memory():
            return cls._built(*args, **kwargs)

    def _built(cls, *args: Any, **kwargs: Any) -> Any:
        metric = super().__call__(*args, **kwargs)
        if "ignore_index" not in vars(metric):
            raise MetricOptionError(
                f"{cls.__name__}.__init__ doesn't call super().__init__(**kwargs), which sets the metric up; call it first"
            )
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        bound = signature.bind(metric, *args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= given.pop(parameter.name)
        metric._lay_out({name: given.get(name, option.default) for name, option in cls.options().items()})  # type: ignore[attr-defined]
        return metric


class TokenMetric(SummingMetric, metaclass=_LaidOut):
    """The base of every metric; see `MetricDefinition` for what a subclass defines.

    Args:
        ignore_index: the target that doesn't count.
        kwargs: those of `torchmetrics.Metric` (`process_group`, `dist_sync_on_step`, `dist_sync_fn` …).

    Attributes:
        higher_is_better: True, False, or None where neither direction is better. A subclass says it: until it does, no
            comparison calls a difference better or worse.
    """

    is_differentiable = False
    higher_is_better: bool | None = None
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

    def _lay_out(self, given: Mapping[str, Any]) -> None:
        """Fix the options and the layout of the state, and make the state."""
        if not isinstance(getattr(self, "name", None), str):
            raise MetricOptionError(f'{type(self).__name__} has no name; set the class attribute `name = "…"`')
        self._take_options(given, base=TokenMetric)
        self.layout = self._made_layout()
        self._sum_keys = self._made_keys()
        self.described_sums = self._made_description()
        self._state_name = self._made_state_name()
        empty = torch.zeros(self.layout.size, exact_sum.ROW, dtype=torch.int64)
        self.add_state(self._state_name, empty, dist_reduce_fx=exact_sum.merge)

    def score(
        self,
        logits: Any,
        target: Any = None,
        *,
        weight: Any = None,
        extra_scores: Mapping[str, ExtraScore] | None = None,
    ) -> TokenScores:
        """The scores that `update` would add, by this metric's own options (and `extra_scores` for other metrics).

        In place of logits and target, a function may compute the scores of these options, as `score_hidden_states` does:
        ``metric.score(partial(score_hidden_states, hidden_states, lm_head.weight, target))``.
        """
        if isinstance(logits, TokenScores):
            if target is not None or weight is not None:
                raise InvalidInputError("a TokenScores has its targets and weights in it; pass it alone")
            return logits
        wanted = {**self.extra_scores(), **(extra_scores or {})}
        options = {"ignore_index": self.ignore_index, "extra_scores": wanted, **self.scoring_options()}
        if target is not None:
            return score_tokens(logits, target, weight=weight, **options)
        if not callable(logits):
            raise InvalidInputError("expected update(logits, target) or update(scores); got logits without a target")
        if weight is not None:
            raise InvalidInputError("pass the weight to the function that computes the scores, not beside it")
        scores: TokenScores = logits(**options)
        return scores

    def update(self, logits: Any, target: Any = None, *, weight: Any = None) -> None:
        """Add a batch: logits ``(…, V)`` and targets ``(…)``, or a `TokenScores`."""
        self._refuse_while_synced()
        refuse_capture(self.name, self.state.device)
        scores = self.score(logits, target, weight=weight)
        sums = self._on_own_device(self.exact_sums(scores))
        if scores.replicas and not self._counts_here(scores.replicas):
            sums = torch.zeros_like(sums)
        self.add_sums(sums)

    def _refuse_while_synced(self) -> None:
        if self._is_synced:  # what is added to the total would be gone with it
            raise SyncError(
                f"{self.name} holds the sums of all processes, to which nothing can be added; unsync it first"
            )

    def _on_own_device(self, sums: Tensor) -> Tensor:
        """The sums on the state's device; a warning, once, if this waits for another device in every step."""
        if sums.device == self.state.device:
            return sums
        if self.state.device.type == "cpu":
            warn_of_waiting(self.name, sums.device)
        return sums.to(self.state.device)

    def compute(self, *, nan_policy: NanPolicy = "propagate") -> Tensor:
        """The value over everything added, on all processes: a 0-d float64 on the CPU; nan if nothing counted.

        The sums are copied to the CPU once, and the value is computed there: the same bits for the same sums, on whatever
        device they were added up.

        Args:
            nan_policy: "omit" leaves the rows with nan scores or invalid targets out of every sum, on all processes: the
                value is that of the other rows. A row with an infinite nll stays (to an accuracy it is a wrong
                prediction); only its infinite terms are left out. `counts` says how many rows there were.

        Raises:
            InvalidTargetError: targets were out of range.
            CapacityError: a sum left the range in which it is exact.
            SyncError: another process died, hung or never came; the local sums are unchanged.
        """
        if self._in_forward:  # the value of one batch is returned without waiting for the device
            return self.value_of(self.state, nan_policy=nan_policy)
        state = self.state.cpu()
        self.check_state(state, nan_policy)
        return self.value_of(state, nan_policy=nan_policy)

    def check_state(self, state: Tensor, nan_policy: NanPolicy = "propagate") -> None:
        """Raise or warn for what is wrong with a state on the CPU, as `compute` does."""
        sums = exact_sum.to_float(state, finite_only=True)
        if not needs_attention([self], state, sums):
            return
        counts = self.layout.counts(state)
        invalid = counts["invalid_targets"]
        if invalid and nan_policy != "omit":
            raise InvalidTargetError(
                f"{self.name}: {invalid} targets were neither a class in [0, V) nor ignore_index={self.ignore_index} "
                "(or, for soft targets, not a distribution), or had a weight or a number of bytes below 0. Mask what should "
                "not count with ignore_index; `compute(nan_policy='omit')` gives the value without them"
            )
        if bool(exact_sum.overflowed(state)):
            raise CapacityError(f"{self.name}: a sum left ±2^78, the range in which it is exact")
        rows = counts["counted"] - counts["nan"] - counts["infinite"]
        largest = self.largest_sum(sums)
        if largest < rows * _LEAST and (largest or TOKENS.name in self.layout.rows):
            raise CapacityError(
                f"{self.name}: the sums over its {rows} rows are at most {largest:.2g}, so small that the rounding of terms to "
                "2^-64 may show in their sixth digit. Multiply all weights by one factor, which doesn't change the value"
            )
        if counts["nan"] and nan_policy != "omit":
            warnings.warn(
                f"{self.name}: {counts['nan']} of {counts['counted']} rows gave nan; `compute(nan_policy='omit')` sums the "
                "rest",
                stacklevel=2,
            )

    def largest_sum(self, sums: Tensor) -> float:
        """The largest magnitude of the sums that weights enter, of a state's sums as floats ``(rows,)``."""
        return float(sums[len(COUNTS) :].abs().amax())

    def forward(self, logits: Any, target: Any = None, *, weight: Any = None) -> Any:
        """Add a batch and return its own value; with `dist_sync_on_step`, that of all processes' batches.

        It doesn't wait for the device, so the value is there: a 0-d float64, or float32 on a device without float64.
        """
        refuse_capture(self.name, self.state.device)
        scores = self.score(logits, target, weight=weight)
        batch = self.exact_sums(scores)  # what can't be scored raises here, before anything is changed
        if not (self.dist_sync_on_step or self._is_synced) and type(self).compute is TokenMetric.compute:
            self.update(scores)
            value = self.value_of(self._on_own_device(batch))
            self._forward_cache: Any = value
            return value
        self._in_forward = True
        try:
            return super().forward(scores)
        finally:
            self._in_forward = False

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the state of another metric, of the same class and options, to this one's, exactly."""
        self._refuse_while_synced()
        if not isinstance(incoming_state, Metric | dict):
            raise InvalidInputError(f"{self.name} merges a metric or its `metric_state`; got {incoming_state!r:.80}")
        incoming: dict[str, Any] = incoming_state.metric_state if isinstance(incoming_state, Metric) else incoming_state
        if self._state_name not in incoming:
            raise MetricOptionError(
                f"{self!r} can't take the state of {incoming_state!r}: their sums differ. Build both with the same options"
            )
        self._update_count += incoming_state._update_count if isinstance(incoming_state, Metric) else 1
        self._computed = None
        added = incoming[self._state_name].to(self.state.device)
        with one_at_a_time():
            self._set_state(exact_sum.merge(torch.stack([self.state, added])))

    def set_dtype(self, dst_type: str | torch.dtype) -> TokenMetric:
        """Do nothing: sums are integers and values are float64, whatever the model's dtype."""
        return self

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one value, or a sequence of them over steps, labelled with the unit.

        Plotted by the private `Metric._plot`, read in torchmetrics 1.9; its public `plot` of a subclass calls it alike.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        figure, axes = pyplot_axes(ax)
        self._plot(val, axes)
        axes.set_title(self.name.replace("_", " "))
        axes.set_ylabel(self.value_unit)
        return figure, axes


def needs_attention(metrics: Sequence[TokenMetric], packed: Tensor, sums: Tensor) -> bool:
    """Whether states on the CPU have invalid targets, nan, infinities, or sums that are out of range or too small.

    Args:
        metrics: whose states they are.
        packed: the states, one after the other, ``(rows, 8)``.
        sums: the same as floats, ``(rows,)``.
    """
    if bool(packed[:, 4:].any()):
        return True
    counted, invalid = COUNTS.index("counted"), COUNTS.index("invalid_targets")
    own = torch.split(sums, [metric.layout.size for metric in metrics])
    return any(
        bool(each[invalid]) or metric.largest_sum(each) < float(each[counted]) * _LEAST
        for metric, each in zip(metrics, own, strict=True)
    )
