"""The C functions behind xent-metrics-native's `forward_context`: counted, replaced, and where models use them."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from support import native as native_build

native = native_build.build()
#: The four C functions and the modules whose parts call them.
PARTS = {
    "attention": (native.attention, "causal_attention"),
    "rotary": (native.rotary, "rotate"),
    "norm": (native.rms_norm, "rms_norm"),
    "gated": (native.products, "gated_products"),
}


class Calls:
    """Counts what each C function is asked and what it takes; `others` replace some of them."""

    def __init__(self, monkeypatch, others):
        self.forget()
        for name, (module, function) in PARTS.items():
            replaced = others.get(name, getattr(module, function))
            monkeypatch.setattr(module, function, self.counting(name, replaced))

    def counting(self, name, function):
        def call(*given):
            self.asked.append(name)
            result = function(*given)
            if result is not None:
                self.used.add(name)
            return result

        return call

    def forget(self) -> None:
        self.asked, self.used = [], set()


def right(name, *given):
    """What a C function computes, in float64 by torch, and of any number of rows."""
    given = [part.double() if isinstance(part, torch.Tensor) else part for part in given]
    if name == "attention":
        query, key, value, scale = given
        result = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    elif name == "rotary":
        states, cos, sin = given
        if cos.shape[-1] != states.shape[-1]:
            return None
        left, right = states.chunk(2, -1)
        result = states * cos[:, None] + torch.cat([-right, left], -1) * sin[:, None]
    elif name == "norm":
        result = F.rms_norm(given[0], given[1].shape, given[1], given[2])
    else:
        states, gate, up = given
        if gate.shape != up.shape:
            return None
        result = F.silu(F.linear(states, gate)) * F.linear(states, up)
    return result.float()


def context(model):
    found = native.forward_context(model)
    assert found is not None
    return found


def logits(model, ids):
    return model(ids, use_cache=False).logits


def assert_close(found, expected) -> None:
    assert float((found - expected).norm() / expected.norm()) < 2e-5


#: What is replaced in each architecture, without padding.
ALL = {*PARTS}
FOUND = {
    "gpt2": {"attention"},
    "gpt_neo_local": set(),  # its attention is its own
    "gpt_neox": {"attention"},  # rotates a quarter of each head, within the function
    "llama_tied": ALL,
    "llama_untied": ALL,
    "mistral_window": ALL - {"attention"},  # by a mask
    "gemma2": ALL - {"attention", "gated"},  # caps scores; gelu
    "gemma3": ALL - {"gated"},  # gelu
    "qwen2": ALL,
    "qwen2_window": ALL,
    "qwen3": ALL,
    "phi": {"attention", "rotary"},
    "opt": {"attention"},
    "bloom": set(),
    "mamba": {"norm"},
    "stablelm": ALL - {"norm"},  # rotates half of each head, cut off before; layer norms
    "mixtral": ALL - {"gated"},  # experts
    "cohere": {"attention", "gated"},  # rotates neighbours; layer norms
    "granite": ALL,
    "mpt": set(),
    "recurrent_gemma": {"attention", "norm"},  # rotates half of each head; gelu
    "qwen3_next": ALL - {"rotary"},  # rotates a quarter of each head
    "phi3_longrope": ALL - {"gated"},  # one projection for gate and up
    "llama_dynamic": ALL,
}
