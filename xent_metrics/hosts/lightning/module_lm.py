"""A LightningModule in training as an lm-eval model: `TorchLM` under the trainer's precision, and `as_it_was` around it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from xent_metrics.hosts.lm_eval.models.torch_lm import TorchLM

__all__ = ["ModuleLM", "as_it_was"]


class ModuleLM(TorchLM):
    """`TorchLM` of a module in training.

    Args:
        module: takes ids and gives logits.
        context: makes the context manager within which the module runs.
        alone: score all documents in this process, as if there were no other ranks.
        options: the other arguments of `TorchLM`.
    """

    def __init__(
        self, module: nn.Module, *, context: Callable[[], AbstractContextManager[Any]], alone: bool, **options: Any
    ) -> None:
        self._context = context
        self._alone = alone
        super().__init__(module, **options)

    def around_forward(self) -> AbstractContextManager[Any]:
        return self._context()

    @property
    def rank(self) -> int:
        return 0 if self._alone else super().rank

    @property
    def world_size(self) -> int:
        return 1 if self._alone else super().world_size


@contextmanager
def as_it_was(module: nn.Module) -> Iterator[None]:
    """On leaving, restore the mode of every submodule and the state of all random generators.

    lm-eval seeds the generators of Python, NumPy and torch, so that training would otherwise repeat itself after each
    evaluation.
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
