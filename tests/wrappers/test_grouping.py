"""How rows fall into groups: by position, by frequency, by ids."""

from __future__ import annotations

import pytest
import torch

from xent_metrics import (
    CrossEntropy,
    ExpectedCalibrationError,
    Frequency,
    Grouped,
    Position,
    TokenAccuracy,
)
from xent_metrics.testing import no_host_sync

V = 13


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(6, 20, V, generator=generator)
    target = torch.randint(V, (6, 20), generator=generator)
    target[torch.rand(6, 20, generator=generator) < 0.2] = -100
    return logits, target


def test_rows_of_one_dimension_are_one_sequence(batch):
    logits, target = batch
    by_sequence, in_one = (Grouped(CrossEntropy(), by=Position([0, 8])) for _ in range(2))
    for row in range(6):
        by_sequence.update(logits[row], target[row])
    in_one.update(logits, target)
    assert torch.equal(by_sequence.state, in_one.state)


def test_by_position(batch):
    logits, target = batch
    metric = Grouped(CrossEntropy(), by=Position([0, 1, 8]))
    metric.update(logits, target)
    assert list(metric.by_group()) == ["0", "1–7", "8+"]
    for label, part in zip(metric.by_group(), (slice(0, 1), slice(1, 8), slice(8, 20)), strict=True):
        alone = CrossEntropy()
        alone.update(logits[:, part], target[:, part])
        assert torch.equal(metric.by_group()[label], alone.compute())


def test_by_frequency_of_the_target(batch):
    logits, target = batch
    counts = [0, 5, 50, 500] * 3 + [5]
    metric = Grouped(TokenAccuracy(), by=Frequency([0, 1, 100], counts=counts))
    metric.update(logits, target)
    frequency = torch.tensor(counts)[target.clamp(min=0)]
    for label, low, high in (("0", 0, 1), ("1–99", 1, 100), ("100+", 100, 10**9)):
        alone = TokenAccuracy()
        alone.update(logits, torch.where((frequency >= low) & (frequency < high), target, -100))
        assert torch.equal(metric.by_group()[label], alone.compute())


def test_positions_need_no_host_and_no_order_of_sequences(batch):
    logits, target = batch
    metric = Grouped(ExpectedCalibrationError(num_bins=3), by=Position([0, 3]))
    parts = metric.clone()
    metric.update(logits, target)
    for row in (2, 0, 5, 1, 3, 4):
        parts.update(logits[row : row + 1], target[row : row + 1])
    assert torch.equal(metric.state, parts.state)
    with no_host_sync() as device:
        metric._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
        metric.update(torch.empty(logits.shape, device=device), torch.empty(6, 20, dtype=torch.long, device=device))


def test_groups_of_other_kinds_never_share_a_state():
    names = {
        Grouped(CrossEntropy(), by=by).state_name
        for by in (Position([0, 3]), Position([0, 4]), Frequency([0, 3], counts=[1]), Frequency([0, 3], counts=[5]))
    }
    assert len(names) == 4


@pytest.mark.parametrize("by", [lambda: Position([0, 8]), lambda: Frequency([0, 5], list(range(V)))])
def test_groups_built_on_meta_are_those_of_any_device(batch, by):
    want = Grouped(CrossEntropy(), by=by())
    want.update(*batch)
    with torch.device("meta"):
        metric = Grouped(CrossEntropy(), by=by())
    torch.nn.ModuleList([metric]).to_empty(device="cpu")
    metric.update(*batch)
    assert metric.by_group() == want.by_group()
