"""`no_float64`: tensors on MPS without data, on any machine; float64 there raises, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from xent_metrics.testing import no_float64


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda x: x.double(), "float64"),
        (lambda x: x.sum(dtype=torch.float64), "float64"),
        (lambda x: x.new_zeros(2, dtype=torch.float64), "float64"),
        (lambda x: torch.empty(2, device=x.device, dtype=torch.float64), "float64"),
        (lambda x: torch.zeros(2, dtype=torch.float64).to(x.device), "float64"),
        (lambda x: torch.ones(2, device=x.device, dtype=torch.complex128), "complex128"),
        (lambda x: torch.split(x, 1)[0].to(torch.float64), "float64"),
    ],
)
def test_what_makes_float64_on_the_device_raises(make, dtype):
    with no_float64() as device, pytest.raises(TypeError, match=f"makes {dtype} on mps, which has no such dtype"):
        make(torch.ones(3, device=device))


def test_another_device_may_be_the_one_without_float64():
    with no_float64("xpu") as device, pytest.raises(TypeError, match="makes float64 on xpu"):
        torch.ones(3, device=device).sum(dtype=torch.float64)


def test_float64_on_the_cpu_and_other_dtypes_on_the_device_are_fine():
    with no_float64() as device:
        assert device == torch.device("mps")
        assert torch.ones(3, dtype=torch.float64).device.type == "cpu"
        rows = torch.ones(3, device=device)
        mask = ~(rows > 0) | (rows[:] < 2.5)
        rows[mask] = 0.0
        assert rows.long().device.type == "mps"
    assert torch.ones(3).double().dtype == torch.float64


def test_reading_a_value_raises():
    with no_float64() as device, pytest.raises(Exception, match="_local_scalar_dense"):
        torch.ones(3, device=device).sum().item()
