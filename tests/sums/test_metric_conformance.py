"""What torchmetrics promises of every metric, and tests of its own: kept, or refused for a reason. docs/trust.md has the list."""

from __future__ import annotations

import pickle

import pytest
import torch
from support.metric_kinds import IDS, KINDS, used
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.utilities.exceptions import TorchMetricsUserError
from torchmetrics.wrappers import BootStrapper, MetricTracker, MinMaxMetric, Running

from xent_metrics import CrossEntropy, Perplexity
from xent_metrics.errors import MetricOptionError


@pytest.fixture(params=KINDS, ids=IDS)
def metric(request):
    return request.param()


@pytest.mark.parametrize("constant", ["is_differentiable", "higher_is_better", "full_state_update"])
def test_constants_cannot_be_set(constant, metric):
    with pytest.raises(RuntimeError, match=f"Can't change const `{constant}`"):
        setattr(metric, constant, True)


def test_a_metric_is_hashed_pickled_cloned_and_not_iterated(metric, batch):
    used(metric, *batch)
    for other in (metric.clone(), pickle.loads(pickle.dumps(metric))):
        assert hash(other) != hash(metric)
        assert other.compute() == metric.compute()
        assert other.update_count == metric.update_count == 1
    with pytest.raises(TypeError, match="not iterable"):
        iter(metric)


def test_forward_is_the_batchs_value_and_compute_that_of_all(metric, batch):
    (logits, target), other = batch, type(metric)(**metric.given_options())
    values = [metric(logits[row : row + 1], target[row : row + 1]) for row in range(3)]
    for row, value in enumerate(values):
        other.reset()
        assert value == used(other, logits[row : row + 1], target[row : row + 1]).compute()
    whole = metric.compute()
    assert metric.compute() == whole
    assert metric.update_count == 3
    other.reset()
    assert used(other, *batch).compute() == whole
    metric.reset()
    assert not metric.state.any()
    assert metric.update_count == 0


def test_states_are_listed_and_not_in_state_dicts(metric, batch):
    used(metric, *batch)
    assert list(metric.metric_state) == [metric.state_name]
    assert metric.metric_state[metric.state_name] is metric.state
    assert not [key for key in metric.state_dict() if key.startswith("sums")]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_is_taken(dtype, metric, batch):
    logits = batch[0].to(dtype)
    other = metric.clone()
    assert used(metric, logits, batch[1]).compute().item() == pytest.approx(
        used(other, logits.float(), batch[1]).compute().item(), rel=1e-6
    )


def test_values_have_no_gradient_and_say_so(metric, batch):
    """They are made of integers. The training form of a loss is a function of logits, such as `training_loss`."""
    value = metric(batch[0].clone().requires_grad_(), batch[1])
    assert metric.is_differentiable is False
    assert not value.requires_grad


def test_a_computed_value_before_any_update_warns_and_is_nan(metric):
    with pytest.warns(UserWarning, match="was called before the ``update`` method"):
        assert metric.compute().isnan()


def test_an_unsync_without_a_sync_is_refused(metric):
    with pytest.raises(TorchMetricsUserError, match="already been un-synced"):
        metric.unsync()


def test_an_option_that_does_not_exist_is_refused(metric):
    with pytest.raises(
        MetricOptionError, match=r"has no option 'dist_synk_on_step'\. Did you mean 'dist_sync_on_step'"
    ):
        type(metric)(dist_synk_on_step=True)


def test_a_cache_of_values_is_refused():
    with pytest.raises(MetricOptionError, match="compute_with_cache=True would keep values on some processes"):
        CrossEntropy(compute_with_cache=True)


def test_scripting_is_refused_by_torch(metric):
    """TorchScript has neither unions of types nor keyword-only arguments; `torch.compile` traces updates."""
    with pytest.raises(Exception, match=r"Unknown type annotation|keyword-only arguments"):
        torch.jit.script(metric)


def test_metrics_go_into_torchmetrics_collections_and_wrappers(batch):
    logits, target = batch
    want = used(CrossEntropy(), *batch).compute()
    together = MetricCollection({"ours": CrossEntropy(), "perplexity": Perplexity()}, compute_groups=True)
    together.update(logits, target)
    assert together.compute()["ours"] == want
    tracker = MetricTracker(CrossEntropy(), maximize=False)
    tracker.increment()
    tracker.update(*batch)
    assert tracker.compute() == want
    for wrapper, of in ((MinMaxMetric, lambda x: x["raw"]), (Running, lambda x: x)):
        wrapped = wrapper(CrossEntropy())
        wrapped.update(*batch)
        assert of(wrapped.compute()) == want
    mean = MeanMetric()
    mean.update(CrossEntropy()(*batch))
    assert mean.compute().item() == pytest.approx(want.item())


@pytest.mark.parametrize(("quantile", "works"), [(0.9, True), (torch.tensor([0.1, 0.9]), False)])
def test_bootstrapper_takes_quantiles_of_the_dtype_of_values(quantile, works):
    """torch.quantile wants one dtype for both, and the values are float64."""
    wrapper = BootStrapper(CrossEntropy(), num_bootstraps=3, quantile=quantile)
    wrapper.update(torch.randn(20, 5), torch.randint(5, (20,)))
    if works:
        assert wrapper.compute()["quantile"].dtype == torch.float64
    else:
        with pytest.raises(RuntimeError, match="q tensor must be same dtype"):
            wrapper.compute()
