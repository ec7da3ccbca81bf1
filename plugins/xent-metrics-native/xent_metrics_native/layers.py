"""`forward_context`: within it a float32 model on the CPU runs parts of its decoder layers in C.

    attention       calls of `scaled_dot_product_attention` without a mask but the causal one      attention.py
    rotary          functions called `apply_rotary_pos_emb`                                        rotary.py
    RMSNorm         modules that compute weight · x / √(mean x² + eps)                             rms_norm.py
    gated MLP       modules that compute down(silu(gate(x)) · up(x))                               gated_mlp.py

Every part but attention, which is a call and no module, is tried on random numbers when the context is made.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import nn

from xent_metrics import hookimpl
from xent_metrics_native import gated_mlp, libraries, rms_norm, rotary
from xent_metrics_native.attention import CausalAttention

__all__ = ["FasterLayers", "forward_context"]

_LOCK = threading.RLock()  # one for all models, since those of one architecture share a rotary function


@hookimpl
def forward_context(model: Any) -> AbstractContextManager[Any] | None:
    """A context within which `model` runs parts of its layers in C; None if it isn't plain float32 on the CPU."""
    if libraries.layers is None or any(map(_is_compiled, model.modules())):
        return None
    plain = all(parameter.device.type == "cpu" and parameter.dtype == torch.float32 for parameter in model.parameters())
    return FasterLayers(model) if plain else None


def _is_compiled(module: nn.Module) -> bool:
    """True if `torch.compile` or `Module.compile` wraps a module, whose graph would miss a replaced forward.

    The names were read in torch 2.13. If they move, look at what those two set.
    """
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


class FasterLayers(AbstractContextManager["FasterLayers"]):
    """Replaces parts of a model's layers while it is open.

    It may be opened again and again, and within itself. Only one thread at a time has such a context open; others wait.

    Args:
        model: a model in float32 on the CPU.
    """

    def __init__(self, model: nn.Module) -> None:
        self._forwards = [(module, forward) for module in model.modules() if (forward := _replaced_forward(module))]
        sources = {sys.modules.get(type(module).__module__) for module in model.modules()}
        self._functions = [(source, found) for source in sources if (found := rotary.replaced_function(source))]
        self._open: list[ExitStack] = []

    def __enter__(self) -> FasterLayers:
        """Replace the parts."""
        with ExitStack() as stack:
            stack.enter_context(_LOCK)
            for module, forward in self._forwards:
                if "forward" not in vars(module):  # somebody may have put one there since, as accelerate's hooks do
                    module.forward = forward
                    stack.callback(delattr, module, "forward")  # the class has its own
            for source, function in self._functions:
                stack.callback(setattr, source, rotary.FUNCTION, getattr(source, rotary.FUNCTION))
                setattr(source, rotary.FUNCTION, function)
            stack.enter_context(CausalAttention())
            self._open.append(stack.pop_all())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Put the model's own parts back."""
        self._open.pop().close()


def _replaced_forward(module: nn.Module) -> Callable[..., Any] | None:
    return rms_norm.replaced_forward(module) or gated_mlp.replaced_forward(module)
