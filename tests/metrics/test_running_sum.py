"""Running sums: torch's on a CPU, the same numbers by additions of neighbours elsewhere."""

from __future__ import annotations

import pytest
import torch
from support.device_ops import OnlyDeterministic

from xent_metrics.metrics import running_sum as module
from xent_metrics.metrics.running_sum import running_sum
from xent_metrics.testing import no_host_sync


@pytest.mark.parametrize("size", [0, 1, 2, 3, 8, 13, 1500])
def test_other_devices_have_the_cpus_numbers(size, monkeypatch):
    counts = torch.randint(9, (size,)).double()
    want = counts.cumsum(0)
    assert torch.equal(running_sum(counts), want)

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")

    assert torch.equal(running_sum(counts.as_subclass(Elsewhere)).as_subclass(torch.Tensor), want)
    assert module.__all__ == ["running_sum"]


def test_it_is_deterministic_on_cuda():
    with no_host_sync() as device, OnlyDeterministic():
        values = torch.ones(9, device=device)
        assert running_sum(values).shape == (9,)
        with pytest.raises(RuntimeError, match="cumsum"):
            values.cumsum(0)
