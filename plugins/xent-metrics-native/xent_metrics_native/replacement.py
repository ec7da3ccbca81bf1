"""Tries our parts of a layer before they replace a model's own.

A part is recognised by names (rms_norm.py, gated_mlp.py, rotary.py) and then tried on random numbers. It replaces the
model's own only if both agree, and leaves every call that it can't take to the model's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from xent_metrics.scoring.backends import is_plain

__all__ = [
    "ROUNDING", "ROUNDING_OF_PRODUCTS", "agree", "is_untouched", "or_own", "random_numbers", "replaced_by", "run_in_c"
]  # fmt: skip

ROUNDING = 1e-6  # relative error of a row of random numbers in float32 …
ROUNDING_OF_PRODUCTS = 1e-5  # … or of one that three matrix products round


def run_in_c(function: Callable[..., Tensor | None], *given: Any) -> Tensor | None:
    """Call one of our functions; None where torch must see the call: for gradients, autocast, tracing and subclasses."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return None
    return function(*given) if all(is_plain(value) for value in given if isinstance(value, Tensor)) else None


def replaced_by(
    part: Callable[..., Tensor | None], module: nn.Module, width: int, bound: float
) -> Callable[..., Tensor] | None:
    """Our forward for a module that takes nothing but states ``(..., width)``; None if the part doesn't agree with it."""
    if "forward" in vars(module) or len(inspect.signature(module.forward).parameters) != 1:
        return None
    sizes = torch.tensor([1e-4, 1e-2, 1.0, 30.0, 1e3])  # small numbers show an epsilon, large ones a limit
    states = random_numbers(len(sizes), 32, width) * sizes[:, None, None]  # enough rows for every C function
    return or_own(part, module.forward) if agree(lambda: module(states), lambda: part(states), bound) else None


def or_own(part: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls `part`, and `own` where that returns None or isn't given tensors alone."""

    def run(*given: Any, **options: Any) -> Any:
        plain = not options and all(isinstance(value, Tensor) for value in given)
        found = part(*given) if plain else None
        return own(*given, **options) if found is None else found

    return run


def random_numbers(*shape: int) -> Tensor:
    """Normally distributed numbers, the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")


@torch.no_grad()
def agree(own: Callable[[], Any], part: Callable[[], Any], bound: float) -> bool:
    """True if both return the same tensor or tensors, up to a relative error per row.

    All-zero rows count as disagreement, for they show nothing.
    """
    try:
        expected = own()
    except Exception:  # whatever a module raises that only looks like such a part
        return False
    found = part()
    if found is None:
        return False
    if isinstance(expected, Tensor):
        expected, found = (expected,), (found,)
    return len(expected) == len(found) and all(
        theirs.shape == ours.shape and bool(((ours - theirs).norm(dim=-1) < bound * theirs.norm(dim=-1)).all())
        for theirs, ours in zip(expected, found, strict=True)
    )


def is_untouched(module: nn.Module) -> bool:
    """True if no forward hook and no patched forward observes or changes a module.

    torch has no public names for its hooks; these were read in torch 2.13. If they move, return False: gated MLPs then run
    as they are.
    """
    everywhere = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
    return "forward" not in vars(module) and not any((module._forward_hooks, module._forward_pre_hooks, *everywhere))
