"""TokenMetricCollection: one scoring pass and one collective for any number of metrics."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from xent_metrics.errors import MetricOptionError
from xent_metrics.plugins import as_metric
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums import exact_sum
from xent_metrics.sums.extra_scores import extra_score_key
from xent_metrics.sums.metric import NanPolicy, TokenMetric, needs_attention
from xent_metrics.sums.packed import add_together
from xent_metrics.sums.placement import refuse_capture
from xent_metrics.sums.summing import take_together
from xent_metrics.sums.sync import SharedSync, synced

__all__ = ["TokenMetricCollection"]


class TokenMetricCollection(MetricCollection):
    """Metrics that are updated together: logits are scored once, shared sums are taken once, one all_reduce syncs all.

    Args:
        metrics: registered names, ``{"metric": name, **options}`` or metric objects, in a list (the keys are the metrics'
            names, or `name` in such a dict) or in a dict with keys of your own.
        prefix: prepended to every key of the result.
        postfix: appended to every key of the result.

    Each member remains a metric of its own: it may be logged, reset, cloned or read alone, and no member takes another's
    state.

    >>> import torch
    >>> metrics = TokenMetricCollection(["cross_entropy", "perplexity", "token_accuracy"], prefix="val/")
    >>> metrics.update(torch.zeros(2, 8), torch.tensor([0, 2]))
    >>> {name: round(value.item(), 4) for name, value in metrics.compute().items()}
    {'val/cross_entropy': 2.0794, 'val/perplexity': 8.0, 'val/token_accuracy': 0.5}
    """

    def __init__(
        self,
        metrics: str | TokenMetric | Sequence[str | TokenMetric | Mapping[str, Any]] | Mapping[str, Any],
        *,
        prefix: str | None = None,
        postfix: str | None = None,
    ) -> None:
        members: dict[str, Any] = {**_by_key(metrics)}
        super().__init__(members, prefix=prefix, postfix=postfix, compute_groups=False)

    def members(self) -> dict[str, TokenMetric]:
        """The metrics by their own keys, without prefix and postfix."""
        return {str(key): metric for key, metric in self.items(keep_base=True, copy_state=False)}  # type: ignore[misc]

    def _distinct(self) -> list[TokenMetric]:
        """The metrics, each once, even if one has several keys."""
        return list({id(metric): metric for metric in self.members().values()}.values())

    def _named(self, by_key: Mapping[str, Any]) -> dict[str, Any]:
        """The same with prefix and postfix, by `MetricCollection._set_name`, read in torchmetrics 1.9."""
        return {self._set_name(key): value for key, value in by_key.items()}

    # Batches.

    def update(self, logits: Any, target: Any = None, *, weight: Any = None) -> None:
        """Add a batch to every member: logits and targets, or a `TokenScores`."""
        pairs = self.score(logits, target, weight=weight)

        def update() -> None:
            for metric, scores in pairs:
                metric.update(scores)

        add_together([metric for metric, _ in pairs], update)

    def forward(self, logits: Any, target: Any = None, *, weight: Any = None) -> dict[str, Any]:
        """Add a batch to every member and return the batch's own values."""
        batch = {id(metric): metric(scores) for metric, scores in self.score(logits, target, weight=weight)}
        return self._named({key: batch[id(metric)] for key, metric in self.members().items()})

    def score(self, logits: Any, target: Any = None, *, weight: Any = None) -> list[tuple[TokenMetric, TokenScores]]:
        """Each member with its scores; all sums have been taken, so a batch that can't be scored changes no member."""
        passes = self._score(logits, target, weight)
        for members, scores in passes:
            take_together(members, scores)
        return [(metric, scores) for members, scores in passes for metric in members]

    def exact_sums_by_sequence(self, logits: Any, target: Any = None, *, weight: Any = None) -> dict[str, Tensor]:
        """Each sequence's exact sums ``(B, rows, 8)`` of every member, by its own key; the members stay as they are."""
        passes = self._score(logits, target, weight)
        for members, scores in passes:
            take_together(members, scores, each_sequence=True)
        sums = {id(metric): metric.exact_sums_by_sequence(scores) for members, scores in passes for metric in members}
        return {key: sums[id(metric)] for key, metric in self.members().items()}

    def _score(self, logits: Any, target: Any, weight: Any) -> list[tuple[list[TokenMetric], TokenScores]]:
        """The members of each pass over the logits, and its scores."""
        passes = []
        for members in self._passes():
            refuse_capture(members[0].name, members[0].state.device)
            extra_scores = {name: score for metric in members for name, score in metric.extra_scores().items()}
            passes.append((members, members[0].score(logits, target, weight=weight, extra_scores=extra_scores)))
        return passes

    def _passes(self) -> list[list[TokenMetric]]:
        """The members that each pass over the logits serves.

        A pass with scoring options serves members without any, too. Members that ask for different extra scores under one
        name are served by different passes.
        """
        by_options: dict[int, dict[str, list[TokenMetric]]] = {}
        for metric in self._distinct():
            by_options.setdefault(metric.ignore_index, {}).setdefault(metric.scoring_key, []).append(metric)
        passes = []
        for groups in by_options.values():
            plain = groups.pop("", [])
            groups[next(iter(groups), "")] = [*next(iter(groups.values()), []), *plain]
            for group in groups.values():
                passes += _without_conflicts(group)
        return passes

    # Values.

    def compute(self, *, nan_policy: NanPolicy = "propagate") -> dict[str, Any]:
        """Every member's value over all processes, after one all_reduce (one per process group among the members).

        Members that are computed one by one share one all_reduce, too: the first compute() syncs all; each other member
        reuses its total once. A member that was updated, or reset by itself, in between raises `SyncError` on the processes
        on which it was: reset the collection instead.

        Args:
            nan_policy: as in `TokenMetric.compute`.
        """
        members = self.members()
        self._shared_sync.forget()
        with synced([metric for metric in self._distinct() if metric.may_sync_together()]):
            values = _values(list(members.values()), nan_policy)
        return self._named(dict(zip(members, values, strict=True)))

    def reset(self) -> None:
        """Reset every member; call it on all processes, as `compute`.

        Totals that one member's compute left for the others are dropped with the sums. A member's own `reset` drops none,
        since it may be called on one process.
        """
        super().reset()
        self._shared_sync.forget()

    @contextmanager
    def sync_context(self) -> Iterator[None]:
        """Let every member hold the sums over all processes inside, by one all_reduce; mainly for `state_dict`.

        >>> metrics = TokenMetricCollection(["cross_entropy", "token_accuracy"])
        >>> metrics.persistent(True)
        >>> with metrics.sync_context():
        ...     checkpoint = metrics.state_dict()     # counts once, loaded by any number of processes
        """
        self._shared_sync.forget()
        with synced(self._distinct()):
            yield

    # Checkpoints and copies.

    def persistent(self, mode: bool = True, *, synced: bool = False) -> None:
        """Set whether `state_dict` holds the members' sums, and whether it syncs them first: every process must call it.

        self.metrics.persistent(True, synced=True)      # in a LightningModule: checkpoints resume on any number of ranks
        """
        for metric in self.members().values():
            metric.persistent(mode, synced=synced)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # of three overloads
        """The members' entries; those that sync first share one all_reduce."""
        with synced([metric for metric in self.members().values() if metric.syncs_to_save()]):
            entries: dict[str, Any] = super().state_dict(*args, **kwargs)
        return entries

    def add_metrics(self, metrics: Any, *additional_metrics: Any) -> None:
        """Add members later; a dict gives keys of your own."""
        added: dict[str, Any] = {**_by_key([metrics, *additional_metrics] if additional_metrics else metrics)}
        super().add_metrics(added)
        self._link()

    def _link(self) -> None:
        """Let the members share one sync."""
        self._shared_sync = SharedSync(self._distinct())
        for metric in self._distinct():
            metric.shared_sync = self._shared_sync

    def __getstate__(self) -> dict[str, Any]:
        """A copy links its own members."""
        return {name: value for name, value in self.__dict__.items() if name != "_shared_sync"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._link()

    def set_dtype(self, dst_type: Any) -> TokenMetricCollection:
        """Do nothing: sums are integers and values are float64, whatever the model's dtype."""
        return self


def _without_conflicts(members: Sequence[TokenMetric]) -> list[list[TokenMetric]]:
    """Groups of members that don't ask for different extra scores under one name."""
    groups: list[tuple[dict[str, Hashable], list[TokenMetric]]] = []
    for metric in members:
        asked = {name: extra_score_key(score) for name, score in metric.extra_scores().items()}
        for known, group in groups:
            if all(known.get(name, key) == key for name, key in asked.items()):
                known |= asked
                group.append(metric)
                break
        else:
            groups.append((asked, [metric]))
    return [group for _, group in groups]


def _values(members: list[TokenMetric], nan_policy: NanPolicy) -> list[Tensor]:
    """The members' computed values; their states are copied to the CPU together."""
    states = [metric.state for metric in members]
    at_once = len({state.device for state in states}) == 1 and all(
        type(metric).compute is TokenMetric.compute and metric.update_called and not metric.is_due_to_sync()
        for metric in members
    )
    if not at_once:
        return [metric.compute(nan_policy=nan_policy) for metric in members]
    packed, sizes = torch.cat(states).cpu(), [len(state) for state in states]
    sums = exact_sum.to_float(packed, finite_only=nan_policy == "omit")
    if needs_attention(members, packed, sums):
        for metric, state in zip(members, torch.split(packed, sizes), strict=True):
            metric.check_state(state, nan_policy)
    return [metric.value(metric.unpack(own)) for metric, own in zip(members, torch.split(sums, sizes), strict=True)]


def _by_key(metrics: Any) -> dict[str, TokenMetric]:
    if isinstance(metrics, str | TokenMetric):
        metrics = [metrics]
    if not metrics:
        raise MetricOptionError("a TokenMetricCollection needs at least one metric; got none")
    if isinstance(metrics, Mapping):
        for key in metrics:
            if not isinstance(key, str) or not key or "." in key or hasattr(TokenMetricCollection, key):
                raise MetricOptionError(
                    f"a key is a string without a dot that is no method of the collection; got {key!r}"
                )
        return {key: as_metric(metric) for key, metric in metrics.items()}
    built = [as_metric(metric) for metric in metrics]
    named = [metric.get("name") if isinstance(metric, Mapping) else None for metric in metrics]
    keys = [key or metric.name for key, metric in zip(named, built, strict=True)]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise MetricOptionError(f"{', '.join(twice)} is in the list twice; give a dict with a key for each")
    return dict(zip(keys, built, strict=True))
