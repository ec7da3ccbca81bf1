"""The parts of a model's layers that a plugin computes faster: `Layers`.

    attention   calls of `scaled_dot_product_attention` without a mask but the causal one
    rotation    functions called `apply_rotary_pos_emb`, beside a layer, that compute x · cos + (−x₂, x₁) · sin
    RMSNorm     modules that compute weight · x / √(mean x² + eps), or (1 + weight) · …
    gated MLPs  modules that compute down(silu(gate(x)) · up(x))

A part is taken for what it is by its name and its children, and then tried: what doesn't give the same on random numbers
runs as it is. Attention, which has no module of its own, is tried with the model as a whole, by probe.py. The model is
changed while `used` is open, in one thread at a time, and only then.
"""

from __future__ import annotations

import inspect
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks  # no public names
from torch.overrides import TorchFunctionMode

from xent_metrics.scoring.backends import has_backend, part_by_backend

__all__ = ["Layers", "may_replace"]

_HOOKS = ("attention_backend", "rotary_backend", "norm_backend", "gated_backend")
_ROTATE = "apply_rotary_pos_emb"
_AGREE = 1e-6  # relative error of a row of random numbers, in float32 …
_AGREE_IN_PRODUCTS = 1e-5  # … or of one that three products of matrices round
_EPSILONS = ("variance_epsilon", "eps", "epsilon")
_ONE_AT_A_TIME = threading.RLock()


class Layers:
    """The replaceable parts of a model.

    Args:
        model: a model that `may_replace`.

    Raises:
        PluginError: a backend that breaks its hook's contract.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parts: list[tuple[Any, str, Callable[..., Any]]] = []  # whose, its name, what takes its place
        for module in model.modules():
            forward = _norm(module) or _gated(module)
            if forward is not None:
                self._parts.append((module, "forward", forward))
        for source in {sys.modules.get(type(module).__module__) for module in model.modules()}:
            rotate = _rotary(source)
            if rotate is not None:
                self._parts.append((source, _ROTATE, rotate))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within it the plugins' parts are used."""
        with _ONE_AT_A_TIME, ExitStack() as stack:
            for owner, name, part in self._parts:
                if not isinstance(owner, nn.Module):
                    own = getattr(owner, name)
                    setattr(owner, name, part)
                    stack.callback(setattr, owner, name, own)
                elif name not in vars(owner):  # as nobody else has put there since, such as accelerate's hooks
                    setattr(owner, name, part)
                    stack.callback(delattr, owner, name)  # the class has its own
            stack.enter_context(_CausalAttention())
            yield


def may_replace(model: nn.Module) -> bool:
    """Whether some plugin has a part, and all of the model is float32 in the CPU's memory and not compiled."""
    compiled = any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules())
    plain = all(parameter.device.type == "cpu" and parameter.dtype == torch.float32 for parameter in model.parameters())
    return any(map(has_backend, _HOOKS)) and plain and not compiled


class _CausalAttention(TorchFunctionMode):
    """Asks the plugins before torch."""

    def __torch_function__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            result = _attention(*args, **kwargs)
            if result is not None:
                return result
        return function(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """As `scaled_dot_product_attention`, or None where it isn't causal attention of a text to itself."""
    if attn_mask is not None or dropout_p or not is_causal or query.ndim != 4 or key.shape[:3] != value.shape[:3]:
        return None
    batch, heads, length, dim = query.shape
    key_heads = key.shape[1]
    grouped = key_heads == heads or (enable_gqa and key_heads and heads % key_heads == 0)
    if not grouped or (key.shape[0], *key.shape[2:]) != (batch, length, dim):
        return None
    shape = torch.Size((batch, heads, length, value.shape[-1]))
    scale = 1 / math.sqrt(dim) if scale is None else scale
    return part_by_backend("attention_backend", shape, query=query, key=key, value=value, scale=scale)


def _rotary(source: ModuleType | None) -> Callable[..., Any] | None:
    """The rotation of queries and keys by a plugin, if the models of this file have it."""
    own = getattr(source, _ROTATE, None)
    if own is None or not has_backend("rotary_backend"):
        return None

    def part(*given: Any) -> tuple[Tensor, Tensor] | None:
        if len(given) != 4:
            return None
        query, key = (_rotated(states, *given[2:]) for states in given[:2])
        return None if query is None or key is None else (query, key)

    q, k, cos, sin = _drawn(4, 2, 3, 5, 8).unbind()
    given = (q, k[:, :1], cos[:, 0], sin[:, 0])
    return _part_or_own(part, own) if _agree(lambda: own(*given), lambda: part(*given)) else None


def _part_or_own(part: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    """What takes the place of `own`: the part, where it gives something."""

    def run(*given: Any, **options: Any) -> Any:
        found = None if options else part(*given)
        return own(*given, **options) if found is None else found

    return run


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor | None:
    if states.ndim != 4 or cos.shape != sin.shape:
        return None
    batch, _, length, dim = states.shape
    if cos.shape not in ((batch, length, dim), (1, length, dim)):  # as where a part of each head turns
        return None
    return part_by_backend("rotary_backend", states.shape, states=states, cos=cos, sin=sin)


def _norm(module: Any) -> Callable[..., Tensor] | None:
    """The forward of an RMSNorm by a plugin, if it is one."""
    if "RMSNorm" not in type(module).__name__ or not has_backend("norm_backend"):
        return None
    weight = dict(module.named_parameters()).get("weight")
    eps = next((value for name in _EPSILONS if isinstance(value := getattr(module, name, None), float)), None)
    if weight is None or weight.ndim != 1 or eps is None:
        return None

    def part(*given: Any, offset: int) -> Tensor | None:
        if len(given) != 1:
            return None
        scale = module.weight.detach() + offset if offset else module.weight.detach()
        return part_by_backend("norm_backend", given[0].shape, states=given[0], weight=scale, eps=eps)

    tried = (partial(part, offset=offset) for offset in (0, 1))  # Gemma's weights are added to 1
    return next((forward for part in tried if (forward := _replaced(module, part, len(weight), _AGREE))), None)


def _gated(module: Any) -> Callable[..., Tensor] | None:
    """The forward of a gated MLP by a plugin, if it is one."""
    gate, activation = getattr(module, "gate_proj", None), getattr(module, "act_fn", None)
    known = all(isinstance(getattr(module, name, None), nn.Module) for name in ("up_proj", "down_proj", "act_fn"))
    if not known or not isinstance(gate, nn.Linear) or not has_backend("gated_backend"):
        return None

    def part(*given: Any) -> Tensor | None:
        gate, up = module.gate_proj, module.up_proj
        same = module.act_fn is activation and all(map(_is_own, activation.modules()))
        if len(given) != 1 or not same or not _multiplies(gate) or not _multiplies(up):
            return None
        if gate.weight.shape != up.weight.shape:  # as where one is broadcast
            return None
        shape = torch.Size((*given[0].shape[:-1], len(gate.weight)))
        weights = {"gate": gate.weight.detach(), "up": up.weight.detach()}
        found = part_by_backend("gated_backend", shape, states=given[0], **weights)
        result: Tensor | None = None if found is None else module.down_proj(found)
        return result

    return _replaced(module, part, gate.weight.shape[-1], _AGREE_IN_PRODUCTS)


def _multiplies(module: Any) -> bool:
    """Whether it is a product with weights, and only that."""
    return type(module) is nn.Linear and module.bias is None and _is_own(module)


def _is_own(module: nn.Module) -> bool:
    """Whether nobody sees or changes what it takes and gives."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, _global_forward_hooks, _global_forward_pre_hooks)
    return "forward" not in vars(module) and not any(hooks)


def _replaced(
    module: nn.Module, part: Callable[..., Tensor | None], width: int, bound: float
) -> Callable[..., Tensor] | None:
    """The forward of a module by a part, if that gives what the module does, which takes nothing but states."""
    if "forward" in vars(module) or len(inspect.signature(module.forward).parameters) != 1:
        return None
    sizes = torch.tensor([1e-4, 1e-2, 1.0, 30.0, 1e3])  # an epsilon shows in small numbers, a limit in large ones
    states = _drawn(len(sizes), 32, width) * sizes[:, None, None]  # rows enough for a backend to take them
    return _part_or_own(part, module.forward) if _agree(lambda: module(states), lambda: part(states), bound) else None


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")


@torch.no_grad()
def _agree(own: Callable[[], Any], part: Callable[[], Any], bound: float = _AGREE) -> bool:
    """Whether both give the same tensor, or tensors, row by row; of rows of zeros that can't be told."""
    try:
        expected = own()
    except Exception:  # whatever is raised by what only looks like such a part
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
