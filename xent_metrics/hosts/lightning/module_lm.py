"""A LightningModule in training as an lm-eval model: `TorchLM` under the trainer's precision, then as it was before."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xent_metrics.hosts.lm_eval.models.torch_lm import TorchLM

__all__ = ["ModuleLM", "as_it_was"]


class ModuleLM(TorchLM):
    """`TorchLM` of a module whose forward runs inside `context()`; `alone`, as if there were no other ranks."""

    def __init__(
        self, module: nn.Module, *, context: Callable[[], AbstractContextManager[Any]], alone: bool, **options: Any
    ) -> None:
        self._context = context
        self._alone = alone
        super().__init__(module, **options)

    def _logits(self, ids: Tensor) -> Tensor:
        with self._context():
            logits: Tensor = super()._logits(ids)
        return logits

    @property
    def rank(self) -> int:
        return 0 if self._alone else super().rank

    @property
    def world_size(self) -> int:
        return 1 if self._alone else super().world_size


@contextmanager
def as_it_was(module: nn.Module) -> Iterator[None]:
    """On leaving, every submodule is in its mode again, and all random generators go on where they were.

    lm-eval seeds Python's, NumPy's and torch's generators; without this each evaluation would make training repeat itself.
    """
    training = {name: submodule.training for name, submodule in module.named_modules()}
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng({p.device for p in module.parameters() if p.device.type == "cuda"}):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for name, submodule in module.named_modules():
            submodule.training = training[name]
