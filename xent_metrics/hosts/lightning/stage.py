"""The metrics of one stage: a copy per dataloader, and one all_reduce for all of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xent_metrics.collection import TokenMetricCollection
from xent_metrics.sums.metric import NanPolicy, TokenMetric

__all__ = ["StageMetrics"]


class StageMetrics:
    """One copy of the metrics per dataloader, logged as ``val/key``; of several loaders, ``val/key/dataloader_idx_0``."""

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
        """Add a batch of one dataloader: logits and targets, or a `TokenScores` as `logits`."""
        self.loaders[loader].update(logits, target, weight=weight)

    def compute(self, *, nan_policy: NanPolicy = "propagate") -> dict[str, Tensor]:
        """All values over all processes, with one all_reduce; equal on every process."""
        return self.all.compute(nan_policy=nan_policy)

    def state_dict(self) -> dict[str, Tensor]:
        """The sums over all processes, with one all_reduce; any number of processes can load them, and they count once."""
        with self.all.sync_context():
            return {key: value.cpu() for key, value in self.all.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the sums of `state` on one process, and zeros on the others."""
        self.all.load_state_dict(dict(state))
