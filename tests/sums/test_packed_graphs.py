"""torch.compile: an update is one graph for every batch size, with the bits of an eager one."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from xent_metrics import (
    CrossEntropy,
    ExpectedCalibrationError,
    Grouped,
    Position,
    StandardError,
    TokenMetricCollection,
    get_metric,
    score_tokens,
)
from xent_metrics.sums.packed import PackedMetric, add_together

SHAPES = [(2, 6), (3, 5), (4, 9), (2, 6), (7, 11)]
KINDS = {
    "cross entropy": CrossEntropy,
    "bins": ExpectedCalibrationError,
    "equal mass": lambda: ExpectedCalibrationError(binning="mass"),
    "standard error": lambda: StandardError(CrossEntropy()),
    "grouped": lambda: Grouped(CrossEntropy(), by=Position([0, 4])),
    "collection": lambda: TokenMetricCollection(["cross_entropy", "perplexity", "expected_calibration_error"]),
}


def states(metric):
    members = metric.members().values() if isinstance(metric, TokenMetricCollection) else [metric]
    return [member.state for member in members]


@pytest.fixture
def graphs():
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_is_traced_for_one_shape_and_once_more_for_all_others(kind, graphs):
    compiled = KINDS[kind]()
    eager = copy.deepcopy(compiled)
    update = torch.compile(compiled.update, fullgraph=True, backend=graphs)
    counts = []
    for shape in SHAPES:
        scores = score_tokens(torch.randn(*shape, 13), torch.randint(13, shape))
        eager.update(dataclasses.replace(scores))
        update(scores)
        counts.append(graphs.frame_count)
    assert counts == [1, 2, 2, 2, 2]
    for got, want in zip(states(compiled), states(eager), strict=True):
        assert torch.equal(got, want)
    assert all(member.update_called for member in ([compiled] if kind != "collection" else compiled.members().values()))


def test_a_marked_dimension_needs_one_graph(graphs):
    metric = CrossEntropy()
    update = torch.compile(metric.update, fullgraph=True, backend=graphs, dynamic=True)
    for shape in SHAPES:
        update(score_tokens(torch.randn(*shape, 13), torch.randint(13, shape)))
    assert graphs.frame_count == 1


def test_a_training_step_that_updates_with_its_own_logits_is_traced_twice(graphs):
    model, metric, eager = torch.nn.Linear(5, 13), CrossEntropy(), CrossEntropy()

    def step(hidden, target):
        logits = model(hidden)
        metric.update(logits, target)
        return torch.nn.functional.cross_entropy(logits, target)

    compiled = torch.compile(step, fullgraph=True, backend=graphs)
    counts = []
    for rows in (3, 5, 4, 3, 11):
        hidden, target = torch.randn(rows, 5), torch.randint(13, (rows,))
        compiled(hidden, target).backward()
        eager.update(model(hidden), target)
        counts.append(graphs.frame_count)
    assert counts == [1, 2, 2, 2, 2]
    assert model.weight.grad is not None
    assert metric.counts() == eager.counts()
    torch.testing.assert_close(metric.compute(), eager.compute(), rtol=1e-6, atol=0)


def test_the_eager_count_of_updates_is_torchmetrics_own(batch):
    metric = CrossEntropy()
    for count in range(1, 4):
        metric.update(*batch)
        assert metric.update_count == count


class Twice(CrossEntropy):
    """Adds every batch twice, as an override may."""

    def update(self, logits, target=None, *, weight=None):
        super().update(logits, target, weight=weight)
        super().update(logits, target, weight=weight)


def test_states_added_together_are_those_added_alone_and_share_no_memory(batch):
    metrics = [CrossEntropy(), get_metric("expected_calibration_error"), Twice()]
    alone = [copy.deepcopy(metric) for metric in metrics]
    for _ in range(3):
        scores = score_tokens(3 * torch.randn(3, 8, 13), batch[1])
        add_together(metrics, lambda scores=scores: [metric.update(scores) for metric in metrics])
        for metric in alone:
            metric.update(dataclasses.replace(scores))
    for metric, other in zip(metrics, alone, strict=True):
        assert torch.equal(metric.state, other.state)
        assert metric.state.untyped_storage().nbytes() == metric.state.nbytes


def test_if_one_update_fails_nothing_is_added(batch):
    metrics = [CrossEntropy(), CrossEntropy()]

    def update():
        metrics[0].update(*batch)
        raise KeyError

    with pytest.raises(KeyError):
        add_together(metrics, update)
    assert not metrics[0].state.any()
    metrics[0].update(*batch)
    assert metrics[0].state.any()
    assert PackedMetric._held_back is None
