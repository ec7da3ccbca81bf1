"""The metrics of one stage: for each of its dataloaders the same metrics, and one all_reduce for all of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...analysis import StandardError
from ...collection import TokenMetricCollection
from ...errors import MetricOptionError
from ...metric import TokenMetric
from ...plugins import get_metric
from .names import named_object

__all__ = ["StageMetrics", "build"]


def build(metrics: list[str | dict[str, Any]], *, standard_errors: bool) -> dict[str, TokenMetric]:
    """Metrics by the key they are logged under, from names and from ``{"metric": name, **options}``.

    >>> list(build([{"metric": "cross_entropy", "unit": "bits", "name": "bits_per_token"}], standard_errors=True))
    ['bits_per_token', 'bits_per_token_stderr']
    """
    if isinstance(metrics, str | Mapping) or not metrics:
        raise MetricOptionError(f"metrics is a list of names or of dicts with a `metric`; got {metrics!r}")
    built: dict[str, TokenMetric] = {}
    for entry in metrics:
        key, metric = _one(entry)
        if key in built:
            raise MetricOptionError(f"{key!r} stands twice in metrics; give one of them another `name`")
        built[key] = metric
    if standard_errors:
        built |= {f"{key}_stderr": StandardError(metric) for key, metric in built.items()}
    return built


def _one(entry: str | dict[str, Any]) -> tuple[str, TokenMetric]:
    options = {"metric": entry} if isinstance(entry, str) else dict(entry)
    if not isinstance(options.get("metric"), str):
        raise MetricOptionError(f"expected a metric's name, or a dict with `metric` and its options; got {entry!r}")
    name = options.pop("metric")
    key = options.pop("name", name)
    if isinstance(options.get("token_bytes"), str):
        options["token_bytes"] = named_object(options["token_bytes"], call=True)
    return key, get_metric(name, **options)


class StageMetrics:
    """Copies of the `metrics` for each of `num_loaders`, logged as ``val/key``, or ``val/key/dataloader_idx_0`` of several."""

    def __init__(
        self, metrics: Mapping[str, TokenMetric], *, stage: str, num_loaders: int, device: torch.device | str
    ) -> None:
        self.loaders = []
        for index in range(num_loaders):
            suffix = f"/dataloader_idx_{index}" if num_loaders > 1 else ""
            own = {f"{stage}/{key}{suffix}": copy.deepcopy(metric) for key, metric in metrics.items()}
            self.loaders.append(TokenMetricCollection(own))
        self.all = TokenMetricCollection({key: metric for own in self.loaders for key, metric in own.members().items()})
        self.all.persistent(True)
        self.all.to(device)

    def update(self, loader: int, logits: Any, target: Any, weight: Any) -> None:
        """Add a batch of one dataloader: logits and targets, or a `TokenScores`."""
        self.loaders[loader].update(logits, target, weight=weight)

    def compute(self, *, finite_only: bool = False) -> dict[str, Tensor]:
        """Every value over all processes, by one all_reduce; the same on each of them."""
        return self.all.compute(finite_only=finite_only)

    def state_dict(self) -> dict[str, Tensor]:
        """The sums over all processes, by one all_reduce: loaded by any number of processes, they count once."""
        with self.all.sync_context():
            return {key: value.cpu() for key, value in self.all.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The sums of `state`, on one process; zero on the others."""
        self.all.load_state_dict(dict(state))
