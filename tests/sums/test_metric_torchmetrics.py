"""What torchmetrics, Lightning and checkpoints do to a metric: copies, casts, state dicts, wrappers, compute groups, plots."""

from __future__ import annotations

import copy
import pickle
import sys

import matplotlib
import pytest
import torch
import torchmetrics
from support.metric_kinds import IDS, KINDS, TABLE, used
from torchmetrics.wrappers import BootStrapper, MetricTracker

from xent_metrics import BitsPerByte, CrossEntropy, ExpectedCalibrationError, Perplexity, RatioMetric
from xent_metrics.errors import MissingExtraError
from xent_metrics.metrics import MaximumCalibrationError
from xent_metrics.plugins import Plugins
from xent_metrics.sums import exact_sum

matplotlib.use("Agg")


@pytest.fixture(params=KINDS, ids=IDS)
def metric(request):
    return request.param()


def test_inference_mode_and_grad_mode_mix(metric, batch):
    with torch.inference_mode():
        metric.update(*batch)
        metric(*batch)
    metric.update(*batch)
    metric(batch[0].clone().requires_grad_(), batch[1])
    assert metric.clone().compute() == metric.compute()
    assert not metric.compute().requires_grad


def test_copies_are_independent_and_go_on(metric, batch):
    metric.update(*batch)
    before = metric.state.clone()
    for copied in (metric.clone(), copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert repr(copied) == repr(metric)
        assert torch.equal(copied.compute(), metric.compute())
        copied.update(*batch)
        assert not torch.equal(copied.state, before)
        assert torch.equal(metric.state, before)


def test_state_dicts_hold_sums_on_request_without_aliasing(metric, batch, tmp_path):
    assert not [key for key in used(metric, *batch).state_dict() if key.startswith("sums_")]
    metric.persistent(True)
    torch.save(metric.state_dict(), tmp_path / "sums.pt")
    saved = torch.load(tmp_path / "sums.pt", weights_only=True)
    live = metric.state_dict()
    other = metric.clone()
    other.reset()
    other.load_state_dict(saved)
    assert torch.equal(other.compute(), metric.compute())
    untouched = {key: value.clone() for key, value in saved.items()}
    other.update(*batch)
    metric.update(*batch)
    for key, value in untouched.items():
        assert torch.equal(saved[key], value), key
        assert torch.equal(live[key], value), key
    other.load_state_dict(saved)  # no value of before is kept
    assert not torch.equal(other.state, metric.state)
    assert torch.equal(other.compute(), other.value_of(saved[other.state_name]))


def test_a_parents_checkpoint_carries_the_sums(batch):
    def module():
        parent = torch.nn.Module()
        parent.linear, parent.metric = torch.nn.Linear(2, 2), CrossEntropy()
        parent.metric.persistent(True)
        return parent

    one, other = module(), module()
    one.metric.update(*batch)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.metric.compute(), one.metric.compute())
    assert torch.equal(other.linear.weight, one.linear.weight)


@pytest.mark.parametrize(
    "cast",
    [
        lambda module: module.to(torch.bfloat16),
        lambda module: module.half(),
        lambda module: module.double(),
        lambda module: module.to("cpu", torch.float16),
    ],
    ids=["bfloat16", "half", "double", "device and dtype"],
)
def test_a_change_of_dtype_does_no_harm(cast, metric, batch):
    want = used(metric.clone(), *batch)
    parent = torch.nn.Module()
    parent.metric = used(metric.clone(), *batch)
    cast(parent)
    alone = cast(used(metric, *batch))
    alone.set_dtype(torch.bfloat16)
    for cast_metric in (alone, parent.metric):
        assert cast_metric.state.dtype == torch.int64
        assert torch.equal(cast_metric.compute(), want.compute())
        cast_metric.update(*batch)
        assert torch.equal(cast_metric.state, exact_sum.merge(torch.stack([want.state, want.state])))


class TestWrappers:
    def test_tracker(self, batch):
        tracker = MetricTracker(CrossEntropy(), maximize=False)
        for logits in (batch[0], 0 * batch[0], 3 * batch[0]):
            tracker.increment()
            tracker.update(logits, batch[1])
        values = tracker.compute_all()
        assert values.tolist() == [used(CrossEntropy(), s * batch[0], batch[1]).compute().item() for s in (1, 0, 3)]
        best, step = tracker.best_metric(return_step=True)
        assert (best, step) == (values.min().item(), int(values.argmin()))

    def test_tracker_knows_which_way_is_better(self, metric):
        assert MetricTracker(metric).maximize == bool(metric.higher_is_better)

    def test_bootstrapper(self, metric):
        wrapper = BootStrapper(metric, num_bootstraps=4, raw=True, quantile=torch.tensor([0.25, 0.75]).double())
        for _ in range(3):
            wrapper.update(torch.randn(40, 13), torch.randint(13, (40,)))
        output = wrapper.compute()
        assert output["raw"].shape == (4,)
        assert output["raw"].unique().numel() == 4
        assert output["std"] > 0

    def test_compute_groups_share_only_equal_sums(self, batch):
        """First batches of zeros look alike in every sum, whatever is in them."""
        members = {
            "cross_entropy": CrossEntropy(),
            "bits": CrossEntropy(unit="bits"),
            "perplexity": Perplexity(),
            "other_ignored": CrossEntropy(ignore_index=3),
            "smoothed": CrossEntropy(label_smoothing=0.1),
            "smoothed_more": CrossEntropy(label_smoothing=0.2),
            "table": BitsPerByte(token_bytes=TABLE),
            "other_table": BitsPerByte(token_bytes=TABLE + 1),
            "bins": ExpectedCalibrationError(num_bins=15),
            "max": MaximumCalibrationError(num_bins=15),
            "other_bins": ExpectedCalibrationError(num_bins=14),
        }
        for first in (torch.zeros(0, 13), 1e4 * torch.eye(13)):
            together = torchmetrics.MetricCollection({name: metric.clone() for name, metric in members.items()})
            together.update(first, torch.arange(len(first)))
            groups = {frozenset(group) for group in together.compute_groups.values()}
            assert {g for g in groups if len(g) > 1} == {
                frozenset({"cross_entropy", "bits", "perplexity"}), frozenset({"bins", "max"}),
            }  # fmt: skip
            second = batch[0], batch[1].clamp(min=0)
            together.update(*second)
            for name, value in together.compute().items():
                alone = used(used(members[name].clone(), first, torch.arange(len(first))), *second)
                assert torch.equal(value, alone.compute()), name

    def test_arithmetic(self, batch):
        difference = CrossEntropy() - CrossEntropy(label_smoothing=0.1)
        difference.update(*batch)
        want = used(CrossEntropy(), *batch).compute() - used(CrossEntropy(label_smoothing=0.1), *batch).compute()
        assert torch.equal(difference.compute(), want)


@pytest.mark.parametrize("values", ["own", "one", "several"])
def test_plot_shows_the_unit(values, metric, batch):
    metric.update(*batch)
    given = {"own": None, "one": metric.compute(), "several": [metric.compute(), metric.compute()]}[values]
    figure, axes = metric.plot(given)
    if isinstance(metric, ExpectedCalibrationError) and values == "own":  # test_plots.py has its diagram
        assert axes.get_title() == f"expected calibration error: {metric.compute():.4f}"
    else:
        assert axes.get_ylabel() == metric.value_unit
        assert axes.get_title() == metric.name.replace("_", " ")
    matplotlib.pyplot.close(figure)


def test_a_plot_without_matplotlib_names_the_extra(monkeypatch, batch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    metric = CrossEntropy()
    metric.update(*batch)
    with pytest.raises(MissingExtraError, match=r"pip install 'xent-metrics\[plots\]'"):
        metric.plot()


def test_a_direction_is_said_or_there_is_none():
    class Hits(RatioMetric):
        name = "hits"

        def per_token(self, scores):
            return scores.correct.to(scores.nll.dtype)

    assert Hits().higher_is_better is None
    found = {name: metric.higher_is_better for name, metric in Plugins().metrics.items()}
    undirected = {
        "mean_confidence",
        "optimal_temperature",
        "overconfidence",
        "prediction_entropy",
        "probability_change",
    }
    assert {name for name, direction in found.items() if direction is None} == undirected
    higher = {"mean_reciprocal_rank", "same_top_token", "token_accuracy", "top_k_accuracy"}
    assert {name for name, direction in found.items() if direction} == higher
