"""The layers of xent-metrics-native beside torch's attention and Hugging Face's Llama.

    pip install ./plugins/xent-metrics-native && python benchmarks/native_layers.py [--quick]

A Llama of 135M parameters with random weights, 2 rows of 1,000 ids, float32. Prints ratios (medians of alternated runs) and
the distance of each result from float64, as a multiple of torch's. Claims, on two cores with AVX-512: attention is at least
1.3x and the whole base model at least 1.08x as fast; no result is more than twice as far from float64 as torch's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from claims import Claims
from lm_eval_hf import llama
from scoring import seconds
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb
from xent_metrics_native import forward_context
from xent_metrics_native.attention import causal_attention
from xent_metrics_native.products import gated_products
from xent_metrics_native.rms_norm import rms_norm
from xent_metrics_native.rotary import rotate

from xent_metrics.hosts.lm_eval.models.freed_memory import keep_freed_memory

Part = tuple[Callable[..., Tensor | None], Callable[..., Tensor], tuple[Any, ...]]


def parts(rows: int, length: int) -> dict[str, Part]:
    """Name: (ours, theirs, what both are given)."""
    query, key, value = (torch.randn(rows, length, heads, 64).transpose(1, 2) for heads in (9, 3, 3))
    angles = torch.outer(torch.arange(length), 1e4 ** -(torch.arange(0, 64, 2) / 64)).repeat(1, 2)[None]
    states, norm = torch.randn(rows, length, 576), LlamaRMSNorm(576)
    gate, up = torch.randn(2, 1536, 576) / 24

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    def rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return apply_rotary_pos_emb(states, states[:, :0], cos, sin)[0]

    def normed(states: Tensor, weight: Tensor, eps: float) -> Tensor:
        if states.dtype == torch.float32:
            return norm(states)
        return F.rms_norm(states, weight.shape, weight, eps)

    return {
        "attention": (lambda *given: causal_attention(*given, 64**-0.5), attention, (query, key, value)),
        "rotary positions": (rotate, rotated, (query, angles.cos(), angles.sin())),
        "RMSNorm": (rms_norm, normed, (states, norm.weight.detach(), 1e-6)),
        "silu(x Gᵀ) · (x Uᵀ)": (
            gated_products,
            lambda states, gate, up: F.silu(F.linear(states, gate)) * F.linear(states, up),
            (states, gate, up),
        ),
    }


def part_case(claims: Claims, name: str, part: Part, repeats: int) -> None:
    ours, theirs, given = part
    times = seconds(lambda: ours(*given), lambda: theirs(*given), repeats=repeats)
    claims.ratio(
        f"{name}: torch / ours", times[1] / times[0], at_least=1.3 if name == "attention" else None,
        seen=" / ".join(f"{1e3 * time:.2f} ms" for time in reversed(times)),
    )  # fmt: skip
    truth = theirs(*(part.double() if isinstance(part, Tensor) else part for part in given))
    found = ours(*given)
    assert found is not None
    errors = [float((answer - truth).norm() / truth.norm()) for answer in (found, theirs(*given))]
    claims.error(
        f"  distance from float64, ours / torch's ({errors[0]:.1e})", errors[0] / max(errors[1], 1e-8), at_most=2.0
    )


def model_case(claims: Claims, rows: int, length: int, repeats: int, layers: int) -> None:
    model = llama(layers).base_model
    context, ids = forward_context(model), torch.randint(1000, (rows, length))
    assert context is not None

    def forward() -> Tensor:
        found: Tensor = model(ids, use_cache=False)[0]
        return found

    def forward_in_c() -> Tensor:
        with context:
            return forward()

    with keep_freed_memory():
        ours, theirs = seconds(forward_in_c, forward, repeats=repeats)
        error = (forward_in_c() - forward()).norm() / forward().norm()
    claims.ratio(
        f"base model of {layers} layers: torch / ours",
        theirs / ours,
        at_least=1.08,
        seen=f"{theirs:.2f} / {ours:.2f} s",
    )
    claims.error("  relative difference of the hidden states", float(error), at_most=2e-5)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer runs: a smoke test")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    rows, length, layers, repeats = (1, 200, 2, 3) if quick else (2, 1000, 30, 7)
    claims = Claims(f"{rows} × {length} ids, {torch.get_num_threads()} threads", quick=quick)
    with keep_freed_memory():
        for name, part in parts(rows, length).items():
            part_case(claims, name, part, repeats * 5)
    model_case(claims, rows, length, repeats, layers)
    claims.report()


if __name__ == "__main__":
    main()
