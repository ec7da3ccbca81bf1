"""Rotary positions against what models compute."""

from __future__ import annotations

import pytest
import torch
from support import native as native_build
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

native = native_build.build()
level = native_build.every_level(native)


@pytest.mark.parametrize("positions", [1, 3])
@pytest.mark.parametrize("dim", [2, 6, 64, 128])
def test_rotary_positions(positions, dim):
    query, key = (torch.randn(3, 50, heads, dim).transpose(1, 2) for heads in (4, 2))
    angles = torch.randn(positions, 50, dim)
    cos, sin = angles.cos(), angles.sin()
    for states, expected in zip((query, key), apply_rotary_pos_emb(query, key, cos, sin), strict=True):
        torch.testing.assert_close(native.rotary.rotate(states, cos, sin), expected)
        torch.testing.assert_close(native.rotary.rotate(states.contiguous(), cos, sin), expected)


STATES, ANGLES = torch.randn(2, 3, 4, 8), torch.randn(2, 4, 8)


@pytest.mark.parametrize(
    ("states", "cos", "sin"),
    [
        (STATES.bfloat16(), ANGLES, ANGLES),
        (STATES[0], ANGLES, ANGLES),
        (STATES, ANGLES[..., :4], ANGLES[..., :4]),
        (STATES, ANGLES, ANGLES[:1]),
        (STATES[..., :7], ANGLES[..., :7], ANGLES[..., :7]),
        (STATES, ANGLES.transpose(1, 2), ANGLES.transpose(1, 2)),
    ],
)
def test_other_tensors_are_left_to_torch(states, cos, sin):
    assert native.rotary.rotate(states, cos, sin) is None
