"""The metrics of a stage: named by stage and loader, apart from each other, and resumed."""

import pytest
import torch

from xent_metrics import get_metric
from xent_metrics.hosts.lightning.stage import StageMetrics

NAMES = ("cross_entropy", "expected_calibration_error")


def stage(loaders=1, metrics=None):
    metrics = metrics or {name: get_metric(name) for name in NAMES}
    return StageMetrics(metrics, stage="val", num_loaders=loaders, device="cpu")


def value(name, logits, target, weight=None):
    metric = get_metric(name)
    metric.update(logits, target, weight=weight)
    return metric.compute()


def test_one_loaders_values_have_the_name_of_the_stage_alone(batch):
    metrics = stage()
    metrics.update(0, *batch, None)
    assert metrics.compute() == {f"val/{name}": value(name, *batch) for name in NAMES}


def test_each_of_several_loaders_has_values_of_its_own(batch):
    logits, target = batch
    metrics = stage(loaders=2)
    metrics.update(0, logits, target, None)
    metrics.update(1, logits.flip(0), target, None)
    assert metrics.compute() == {
        f"val/{name}/dataloader_idx_{index}": value(name, rows, target)
        for index, rows in enumerate((logits, logits.flip(0)))
        for name in NAMES
    }


def test_the_metrics_given_stay_as_they_were(batch):
    given = {"mine": get_metric("cross_entropy")}
    metrics = stage(metrics=given)
    metrics.update(0, *batch, None)
    assert list(metrics.compute()) == ["val/mine"]
    assert not given["mine"].update_called


def test_a_stage_goes_on_from_its_state(batch):
    logits, target = batch
    first, second = stage(loaders=2), stage(loaders=2)
    for index in range(2):
        first.update(index, logits[:1], target[:1], None)
    state = first.state_dict()
    second.load_state_dict(state)
    assert set(state) >= {key for key in second.all.state_dict() if "sums_" in key}
    for index in range(2):
        second.update(index, logits[1:], target[1:], None)
    assert second.compute() == {
        f"val/{name}/dataloader_idx_{index}": value(name, *batch) for index in range(2) for name in NAMES
    }


def test_nan_and_weights_are_the_metrics(batch):
    logits, target = batch
    logits[0, 5] = torch.nan
    weight = torch.rand(target.shape)
    metrics = stage()
    metrics.update(0, logits, target, weight)
    with pytest.warns(UserWarning, match="1 of 21 rows gave nan"):
        assert all(found.isnan() for found in metrics.compute().values())
    without = target.clone()
    without[0, 5] = -100
    assert metrics.compute(nan_policy="omit") == {f"val/{name}": value(name, logits, without, weight) for name in NAMES}
