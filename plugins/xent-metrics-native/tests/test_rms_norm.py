"""RMSNorm against float64 and what models compute; bits that depend on nothing but the row."""

from __future__ import annotations

import pytest
import torch
from support import native as native_build
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

native = native_build.build()
level = native_build.every_level(native)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (2, 3, 64), (2, 4, 5, 48), (300, 576), (3, 4099)])
@pytest.mark.parametrize("size", [1e-18, 1e-3, 1.0, 1e15])
def test_rms_norm(shape, size):
    states, weight = torch.randn(shape) * size, torch.randn(shape[-1])
    expected = F.rms_norm(states.double(), shape[-1:], weight.double(), 1e-6)
    found = native.rms_norm.rms_norm(states, weight, 1e-6).double()
    assert found.shape == expected.shape
    assert float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max()) <= 5e-7


def test_rms_norm_is_what_models_compute():
    norm, states = LlamaRMSNorm(64), torch.randn(2, 9, 64)
    torch.nn.init.normal_(norm.weight)
    with torch.no_grad():
        torch.testing.assert_close(native.rms_norm.rms_norm(states, norm.weight.detach(), 1e-6), norm(states))
        apart = states.transpose(0, 1)
        torch.testing.assert_close(native.rms_norm.rms_norm(apart, norm.weight.detach(), 1e-6), norm(apart))


def test_a_rows_norm_has_the_same_bits_in_any_batch():
    states, weight = torch.randn(2, 500, 100), torch.randn(100)
    whole = native.rms_norm.rms_norm(states, weight, 1e-5)
    assert torch.equal(native.rms_norm.rms_norm(states[1, 7:9], weight, 1e-5), whole[1, 7:9])


def test_a_row_with_a_nan_has_a_nan_norm_and_the_others_have_their_own():
    states = torch.tensor([[1.0, torch.nan, 2.0], [1.0, torch.inf, 2.0], [1.0, 2.0, 3.0]])
    found = native.rms_norm.rms_norm(states, torch.ones(3), 1e-6)
    torch.testing.assert_close(found, LlamaRMSNorm(3)(states).detach(), equal_nan=True)


STATES, WEIGHT = torch.randn(2, 3, 4, 8), torch.randn(8)


@pytest.mark.parametrize(
    ("states", "weight", "eps"),
    [
        (STATES.double(), WEIGHT, 1e-6),
        (STATES, WEIGHT[:4], 1e-6),
        (STATES, WEIGHT.half(), 1e-6),
        (STATES[:0], WEIGHT, 1e-6),
    ],
)
def test_other_tensors_are_left_to_torch(states, weight, eps):
    assert native.rms_norm.rms_norm(states, weight, eps) is None
