"""Products of hidden states with weights whose results never leave the caches, in float32, by products.h.

`linear_cross_entropy_backend` scores the logits x Wᵀ; `gated_products` computes silu(x Gᵀ) · (x Uᵀ).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from xent_metrics import hookimpl
from xent_metrics.scoring.linear import LMHead
from xent_metrics.scoring.scores import ExtraScore
from xent_metrics_native import libraries
from xent_metrics_native.tensors import are_readable, is_weight_of, num_threads

__all__ = ["gated_products", "linear_cross_entropy_backend"]

_MIN_GATED_ROWS = 128  # torch multiplies fewer rows as fast
_MAX_TILE_ROWS = 12  # the largest ROWS of attention.h
_MAX_TILE_WIDTH = 32  # the largest WIDE of attention.h
_MAX_BLOCK_TILES = 16  # MAX_WIDTH of layers.c in tiles
_CACHED_WEIGHTS = 2**18  # 1 MiB, which fits into a core's cache


class _Products(ctypes.Structure):
    """`Products` of layers.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("states", "weight", "up")),
        *((name, ctypes.c_int64) for name in ("rows", "depth", "columns", "blocks")),
        ("room", ctypes.c_void_p),
        ("of_thread", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in ("out", "target", "nll", "confidence", "correct", "top", "rest", "logit", "leads")
        ),
    )


_products = libraries.declare(
    libraries.layers, "xent_products", ctypes.POINTER(_Products), ctypes.c_int32, ctypes.c_int32
)


@hookimpl
def linear_cross_entropy_backend(
    hidden_states: Tensor, head: LMHead, target: Tensor, extra_scores: Mapping[str, ExtraScore]
) -> tuple[Tensor, Tensor, Tensor] | None:
    """nll (float32, nats), confidence (float32) and correct (bool) of x Wᵀ with targets ``(N,)``, and nothing else."""
    rows = hidden_states.ndim == 2 and target.shape == hidden_states.shape[:1] and target.dtype == torch.int64
    if extra_scores or not head.plain or not rows or not are_readable(target):
        return None
    if not is_weight_of(hidden_states, head.weight):
        return None
    return _scores(hidden_states.contiguous(), head.weight, target.contiguous())


def gated_products(states: Tensor, gate: Tensor, up: Tensor) -> Tensor | None:
    """silu(x Gᵀ) · (x Uᵀ) for at least 128 rows x, with G and U of the same shape; None for other tensors."""
    if not is_weight_of(states, gate) or not is_weight_of(states, up) or up.shape != gate.shape:
        return None
    if states.numel() < _MIN_GATED_ROWS * states.shape[-1]:
        return None
    out = torch.empty(*states.shape[:-1], len(gate), dtype=torch.float32, device="cpu")
    _multiply(states.contiguous(), gate, up=up, out=out)
    return out


def _scores(states: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = len(states)
    if rows < _MAX_TILE_ROWS:
        padding = _MAX_TILE_ROWS - rows
        states, target = F.pad(states, (0, 0, 0, padding)), F.pad(target, (0, padding))
    nll, confidence, logit = torch.empty(3, len(states), dtype=torch.float32, device="cpu")
    correct, leads = torch.empty(2, len(states), dtype=torch.bool, device="cpu")
    results = {"nll": nll, "confidence": confidence, "correct": correct}
    _multiply(states, weight, target=target, logit=logit, leads=leads, **results)
    return nll[:rows], confidence[:rows], correct[:rows]


def _multiply(states: Tensor, weight: Tensor, **others: Tensor) -> None:
    """Multiply by blocks of columns that fill a core's cache; with `up`, its columns count, too."""
    columns, depth = weight.shape
    rows = states.numel() // depth
    tiles = -(-columns * (2 if "up" in others else 1) // _MAX_TILE_WIDTH)
    block_tiles = max(1, min(_MAX_BLOCK_TILES, _CACHED_WEIGHTS // (_MAX_TILE_WIDTH * depth)))
    blocks, threads = -(-tiles // block_tiles), min(num_threads(rows * columns), tiles)
    if "up" in others:  # gated products are the same for any number of blocks: give each thread as many …
        blocks = -(-blocks // threads) * threads
    else:  # … but a row's sum is added up from its blocks' sums, which mustn't depend on the threads
        threads = min(threads, blocks)
        others["top"], others["rest"] = torch.empty(2, rows * blocks, dtype=torch.float32, device="cpu")
    of_thread = block_tiles * _MAX_TILE_WIDTH * depth
    room = torch.empty(threads * of_thread, dtype=torch.float32, device="cpu")
    addresses = {name: tensor.data_ptr() for name, tensor in others.items()}
    job = _Products(
        states=states.data_ptr(), weight=weight.data_ptr(), rows=rows, depth=depth, columns=columns,
        blocks=blocks, room=room.data_ptr(), of_thread=of_thread, **addresses,
    )  # fmt: skip
    _products(ctypes.byref(job), libraries.level, threads)
