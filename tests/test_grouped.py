"""Any metric by group: each group's value is that of the metric on its rows alone, to the bit."""

from __future__ import annotations

import math

import pytest
import torch

from xent_metrics import BitsPerByte, CrossEntropy, ExpectedCalibrationError, Perplexity, TokenAccuracy, get_metric
from xent_metrics.errors import InvalidInputError, MetricOptionError, MissingScoreError
from xent_metrics.exact_sum import to_float
from xent_metrics.grouped import Frequency, Grouped, Position
from xent_metrics.testing import check_metric, no_host_sync

V = 13
METRICS = [
    CrossEntropy(),
    Perplexity(),
    TokenAccuracy(),
    ExpectedCalibrationError(num_bins=4),
    BitsPerByte(token_bytes=torch.arange(V)),
    CrossEntropy(label_smoothing=0.1),
    get_metric("brier_score"),
]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(6, 20, V, generator=generator)
    target = torch.randint(V, (6, 20), generator=generator)
    target[torch.rand(6, 20, generator=generator) < 0.2] = -100
    return logits, target


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_each_group_is_the_metric_on_its_rows_alone(batch, metric):
    logits, target = batch
    group = torch.randint(3, (6, 20), generator=torch.Generator().manual_seed(1))
    grouped = Grouped(metric, by="group", labels=["a", "b", "c"])
    for row in range(6):  # in pieces
        grouped.update(logits[row], target[row], group=group[row])
    for index, label in enumerate("abc"):
        alone = metric.clone()
        alone.update(logits, torch.where(group == index, target, -100))
        assert torch.equal(grouped.by_group()[label], alone.compute())
        assert torch.equal(to_float(grouped.group_states()[label])[3:], to_float(alone.state)[3:])
    whole = metric.clone()
    whole.update(logits, target)
    assert float(grouped.compute()) == pytest.approx(float(whole.compute()), rel=1e-14)


def test_macro_is_the_mean_of_groups_that_have_rows(batch):
    logits, target = batch
    group = torch.tensor([0, 0, 0, 0, 2, 7])  # an id a sequence; 7 is no group, and nothing is in 1
    metric = Grouped(CrossEntropy(), by="group", labels=["a", "b", "c"], average="macro")
    metric.update(logits, target, group=group)
    values = [float(value) for value in metric.by_group().values()]
    assert math.isnan(values[1])
    assert float(metric.compute()) == pytest.approx((values[0] + values[2]) / 2, rel=1e-15)
    logits[4, 0, 0] = math.nan
    broken = metric.clone()
    broken.update(logits, target, group=group)
    assert broken.value_of(broken.state).isnan(), "a group with nan is not one without rows"
    logits[4, 0, 0] = 0.0
    left_out = CrossEntropy()
    left_out.update(logits[:5], target[:5])
    micro = Grouped(CrossEntropy(), by="group", labels=["a", "b", "c"])
    micro.update(logits, target, group=group)
    assert float(micro.compute()) == pytest.approx(float(left_out.compute()), rel=1e-15)


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


def test_groups_keep_the_contract():
    check_metric(Grouped(CrossEntropy(), by=Frequency([0, 4], counts=torch.arange(11))), vocab_size=11)
    check_metric(
        Grouped(get_metric("brier_score"), by=Frequency([0, 9], counts=torch.arange(11)), average="macro"),
        vocab_size=11,
    )


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
        Grouped(CrossEntropy(), by=by)._state_name
        for by in (Position([0, 3]), Position([0, 4]), Frequency([0, 3], counts=[1]), Frequency([0, 3], counts=[5]))
    }
    assert len(names) == 4


def test_bad_input_is_told(batch):
    logits, target = batch
    metric = Grouped(CrossEntropy(), by="group", labels=["a"])
    with pytest.raises(MissingScoreError, match="`group`"):
        metric.update(logits, target)
    with pytest.raises(InvalidInputError, match=r"group has an id a row or a sequence, \(6, 20\).*got \(5,\)"):
        metric.update(logits, target, group=torch.zeros(5))
    with pytest.raises(MetricOptionError, match=r'"group" with labels=\[…\]; got .domain.'):
        Grouped(CrossEntropy(), by="domain", labels=["a"])
    with pytest.raises(MetricOptionError, match=r"got .group. with labels=\[\]"):
        Grouped(CrossEntropy(), by="group")
    with pytest.raises(MetricOptionError, match="edges rise"):
        Position([3, 3])
    with pytest.raises(InvalidInputError, match=r"counts has an entry a class, \(13,\); got \(2,\)"):
        Grouped(CrossEntropy(), by=Frequency([0], counts=[1, 2])).update(logits, target)
