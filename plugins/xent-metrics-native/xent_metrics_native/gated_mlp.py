"""Gated MLPs (Shazeer, 2020): replaces the forward of modules that compute down(silu(gate(x)) · up(x))."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from xent_metrics_native import products
from xent_metrics_native.replacement import ROUNDING_OF_PRODUCTS, is_untouched, replaced_by, run_in_c

__all__ = ["replaced_forward"]


def replaced_forward(module: Any) -> Callable[..., Tensor] | None:
    """Our forward for a module; None if it isn't a gated MLP with silu."""
    gate, activation = getattr(module, "gate_proj", None), getattr(module, "act_fn", None)
    known = all(isinstance(getattr(module, name, None), nn.Module) for name in ("up_proj", "down_proj", "act_fn"))
    if not known or not isinstance(gate, nn.Linear):
        return None

    def forward(*given: Tensor) -> Tensor | None:
        gate, up = module.gate_proj, module.up_proj
        same = module.act_fn is activation and all(map(is_untouched, activation.modules()))
        if len(given) != 1 or not same or not _only_multiplies(gate) or not _only_multiplies(up):
            return None
        found = run_in_c(products.gated_products, given[0], gate.weight.detach(), up.weight.detach())
        result: Tensor | None = None if found is None else module.down_proj(found)
        return result

    return replaced_by(forward, module, gate.weight.shape[-1], ROUNDING_OF_PRODUCTS)


def _only_multiplies(module: Any) -> bool:
    """True for a linear layer without a bias that nobody observes or changes."""
    return type(module) is nn.Linear and module.bias is None and is_untouched(module)
