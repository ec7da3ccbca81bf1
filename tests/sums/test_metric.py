"""TokenMetric: exact through every partition, sums named by their options, and bad input that leaves the state intact."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.distributed import fake_ranks
from support.metric_kinds import IDS, KINDS, used
from support.registered import buildable, plugin_of

from xent_metrics import (
    CrossEntropy,
    Perplexity,
    RatioMetric,
    TokenAccuracy,
    TokenMetric,
    TokenMetricCollection,
    get_metric,
    score_tokens,
)
from xent_metrics.errors import CapacityError, InvalidInputError, InvalidTargetError, MetricOptionError


@pytest.fixture(params=KINDS, ids=IDS)
def metric(request) -> TokenMetric:
    return request.param()


@pytest.mark.parametrize("kind", [KINDS[i] for i in (0, 1, 5, 6)], ids=[IDS[i] for i in (0, 1, 5, 6)])
def test_fifty_partitions_orders_and_trees_of_one_batch_give_one_bit_pattern(kind):
    logits = (5 * torch.randn(90, 13)).to(torch.bfloat16)
    target = torch.randint(13, (90,))
    target[::7] = -100
    weight = torch.rand(90)
    whole = used(kind(), score_tokens(logits, target, weight=weight, **kind().scoring_options())).state

    @given(st.randoms(use_true_random=False))
    def check(chance):
        order = chance.sample(range(90), 90)
        cuts = sorted(chance.choices(range(91), k=chance.randrange(8)))
        metrics = []
        for a, b in zip([0, *cuts], [*cuts, 90], strict=True):
            metric = kind()
            metric.update(logits[order[a:b]], target[order[a:b]], weight=weight[order[a:b]])
            metrics.append(metric)
        while len(metrics) > 1:
            chance.shuffle(metrics)
            metrics[0].merge_state(metrics.pop())
        assert torch.equal(metrics[0].state, whole)

    check()


def test_update_compute_reset(metric, batch):
    with pytest.warns(UserWarning, match="called before the ``update``"):
        assert metric.compute().isnan()
    first = used(metric, *batch).compute()
    assert (first.ndim, first.dtype) == (0, torch.float64)
    metric.update(*batch)
    torch.testing.assert_close(metric.compute(), first, rtol=1e-14, atol=0)
    assert not torch.equal(metric.state, torch.zeros_like(metric.state))
    metric.reset()
    assert not metric.state.any()
    assert not metric.update_called


def test_nan_policy_omit_is_the_value_without_the_rows_of_nan_and_keeps_those_of_inf():
    logits, target = torch.zeros(10, 8), torch.arange(10) % 8
    logits[9] = float("nan")
    metrics = TokenMetricCollection(["cross_entropy", "perplexity", "token_accuracy"])
    metrics.update(logits, target)
    uniform = {"cross_entropy": math.log(8), "perplexity": 8.0, "token_accuracy": 2 / 9}
    assert {k: float(v) for k, v in metrics.compute(nan_policy="omit").items()} == pytest.approx(uniform, rel=1e-7)
    with pytest.warns(UserWarning, match="1 of 10 rows gave nan"):
        assert metrics["token_accuracy"].compute().isnan()
    metrics.reset()
    logits[9], target[9] = torch.tensor([-torch.inf, *[0.0] * 7]), 0
    metrics.update(logits, target)
    found = metrics.compute(nan_policy="omit")
    assert float(found["token_accuracy"]) == pytest.approx(2 / 10), "the impossible token is a wrong prediction"
    assert float(found["cross_entropy"]) == pytest.approx(9 / 10 * math.log(8)), (
        "of its infinite term the sum is without"
    )


def test_nothing_counted_is_nan_with_its_counts(metric, batch):
    metric.update(batch[0], torch.full_like(batch[1], -100))
    metric.update(batch[0][:0], batch[1][:0])
    assert metric.compute().isnan()
    assert (metric.counts()["counted"], metric.counts()["ignored"]) == (0, 24)


def test_forward_gives_the_batch_and_adds_it(metric, batch):
    logits, target = batch
    first, second = metric(logits[:2], target[:2]), metric(logits[2:], target[2:])
    assert torch.equal(first, metric.value_of(metric.exact_sums(metric.score(logits[:2], target[:2]))))
    assert torch.equal(second, metric.value_of(metric.exact_sums(metric.score(logits[2:], target[2:]))))
    assert metric.update_count == 2
    whole = metric.clone()
    whole.reset()
    assert torch.equal(metric.state, used(whole, logits, target).state)


def test_forward_with_a_sync_on_each_step_adds_once(batch):
    metric = CrossEntropy(dist_sync_on_step=True)
    metric(*batch)
    assert torch.equal(metric.state, used(CrossEntropy(), *batch).state)


def test_merging_takes_a_metric_or_its_state(batch):
    one, other = used(CrossEntropy(), *batch), used(CrossEntropy(), batch[0].flip(0), batch[1])
    both = used(used(CrossEntropy(), *batch), batch[0].flip(0), batch[1])
    from_dict = one.clone()
    from_dict.merge_state({other.state_name: other.state})
    one.merge_state(other)
    assert torch.equal(one.state, both.state)
    assert torch.equal(from_dict.state, both.state)
    assert one.update_count == from_dict.update_count == 2
    assert torch.equal(other.state, used(CrossEntropy(), batch[0].flip(0), batch[1]).state)


def test_a_metric_that_only_merged_computes_without_a_warning(batch, recwarn):
    metric = CrossEntropy()
    metric.merge_state({metric.state_name: used(CrossEntropy(), *batch).state})
    metric.compute()
    assert not recwarn.list


def test_equal_sums_are_equal_whatever_reads_them(batch):
    perplexity = Perplexity()
    perplexity.merge_state(used(CrossEntropy(unit="bits"), *batch))
    assert perplexity.compute() == used(CrossEntropy(), *batch).compute().exp()


def test_a_function_scores_by_the_options_of_each_metric(batch):
    logits, target = batch
    members = {
        "smooth": CrossEntropy(label_smoothing=0.1),
        "rank": get_metric("mean_reciprocal_rank"),
        "nats": CrossEntropy(),
    }
    collection, expected = TokenMetricCollection(members), TokenMetricCollection(members).clone()
    collection.update(partial(score_tokens, logits, target))
    expected.update(logits, target)
    assert collection.compute() == expected.compute()


BAD = [
    (lambda m, x, y: m(x, y[:, :-1]), InvalidInputError, "one target per row of logits"),
    (lambda m, x, y: m.update(x, y[:, :-1]), InvalidInputError, "one target per row of logits"),
    (lambda m, x, y: m.update(x), InvalidInputError, "expected update\\(logits, target\\) or update\\(scores\\)"),
    (lambda m, x, y: m(x), InvalidInputError, "got logits without a target"),
    (lambda m, x, y: m(score_tokens(x, y), y), InvalidInputError, "has its targets and weights in it; pass it alone"),
    (lambda m, x, y: m(x, y, weight=torch.ones(3)), InvalidInputError, "expected one weight per row"),
    (lambda m, x, y: m(partial(score_tokens, x, y), weight=y), InvalidInputError, "pass the weight to the function"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_a_bad_batch_leaves_the_state_as_it_was(call, error, message, metric, batch):
    metric.update(*batch)
    before, value = metric.state.clone(), metric.compute()
    with pytest.raises(error, match=message):
        call(metric, *batch)
    assert torch.equal(metric.state, before)
    assert torch.equal(metric.compute(), value)
    assert metric._to_sync
    assert metric._should_unsync  # a half-done forward would leave later values unsynced


def test_targets_out_of_range_are_counted_and_raised_in_compute(metric, batch):
    logits, target = batch[0], batch[1].clone()
    target[1, 3], target[2, 2] = 13, -1
    metric(logits, target)
    before = metric.state.clone()
    message = (
        rf"{metric.name}: 2 targets were neither a class in \[0, V\) nor ignore_index=-100.*Mask.*nan_policy='omit'"
    )
    with pytest.raises(InvalidTargetError, match=message):
        metric.compute()
    assert torch.equal(metric.state, before)
    without = metric.clone()
    without.reset()
    without.update(logits, torch.where((target == 13) | (target == -1), -100, target))
    assert torch.equal(metric.value_of(metric.state, nan_policy="omit"), without.compute())


def test_targets_that_are_no_distribution_are_counted_and_raised():
    metric = CrossEntropy()
    metric.update(torch.zeros(3, 4), torch.tensor([[0.25] * 4, [0.5] * 4, [1.0, 0, 0, 0]]))
    with pytest.raises(InvalidTargetError, match=r"1 targets were neither.*not a distribution"):
        metric.compute()


def test_a_sum_beyond_the_limit_is_an_error(batch):
    metric = used(CrossEntropy(), *batch)
    near = metric.state.clone()
    near[:, 3] = 2**46 - 1
    near[:, 2] = 2**32 - 1
    near[1:3] = 0
    metric._set_state(near)
    metric.compute()
    full = metric.clone()
    full.merge_state(metric)
    with pytest.raises(CapacityError, match=r"cross_entropy: a sum left ±2\^78, the range in which it is exact"):
        full.compute()


def test_counts_go_on_where_float32_stops(batch):
    metric = used(TokenAccuracy(), torch.eye(2), torch.tensor([0, 1]))
    for _ in range(50):  # doubled fifty times
        metric.merge_state(metric.clone())
    metric.update(torch.eye(2), torch.tensor([1, 0]))
    assert metric.counts()["counted"] == 2**51 + 2
    assert metric.compute() == 2**51 / (2**51 + 2)


def test_every_registered_metric_has_its_name_and_a_hash():
    for name in buildable():
        metric = get_metric(name)
        assert metric.name == name
        assert hash(metric) != hash(get_metric(name))


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_a_weight_below_0_is_an_error_and_left_out_by_nan_policy_omit(weight):
    metric, rest = CrossEntropy(), CrossEntropy()
    logits, target = torch.randn(4, 6), torch.tensor([0, 1, 2, -100])
    metric.update(logits, target, weight=torch.tensor([1.0, weight, 2.0, weight]))
    rest.update(logits[[0, 2]], target[[0, 2]], weight=torch.tensor([1.0, 2.0]))
    with pytest.raises(
        InvalidTargetError, match=r"1 targets were neither .* or had a weight or a number of bytes below 0"
    ):
        metric.compute()
    assert metric.compute(nan_policy="omit") == rest.compute()


@pytest.mark.parametrize("built", ["by hand", "by name"])
def test_a_metric_that_does_not_call_super_init_is_told_so(built, install):
    class Forgetful(RatioMetric):
        name = "forgetful"

        def __init__(self, gamma=2.0, **kwargs):
            self.gamma = gamma

        def per_token(self, scores):
            return scores.nll

    install(plugin_of(Forgetful))
    with pytest.raises(
        MetricOptionError, match=r"Forgetful.__init__ doesn't call super\(\).__init__\(\*\*kwargs\), which"
    ):
        Forgetful() if built == "by hand" else get_metric("forgetful")


@pytest.mark.parametrize(("factor", "fits"), [(1e-12, True), (1e-15, False), (1e-18, False), (1e-40, False)])
def test_weights_too_small_for_exact_sums_are_an_error(factor, fits, batch):
    logits, target = batch
    weight = factor * torch.ones(target.shape, dtype=torch.float64)
    alone, together = CrossEntropy(), TokenMetricCollection(["cross_entropy", "token_accuracy"])
    for metric in (alone, together):
        metric.update(logits, target, weight=weight)
    if fits:
        assert alone.compute().item() == pytest.approx(used(CrossEntropy(), *batch).compute().item(), rel=1e-6)
        return
    for metric in (alone, together):
        with pytest.raises(
            CapacityError, match=r"so small that the rounding of terms to 2\^-64 .* Multiply all weights"
        ):
            metric.compute()


def test_a_few_tiny_weights_are_no_error(batch):
    logits, target = batch
    weight = torch.full(target.shape, 1e-30, dtype=torch.float64)
    weight.view(-1)[-2:] = 1.0
    metric = CrossEntropy()
    metric.update(logits, target, weight=weight)
    assert metric.compute().isfinite()


@pytest.mark.parametrize(("replicas", "counted"), [((), 21), ((1, 2), 21), ((0, 1), 0)])
def test_rows_that_several_processes_hold_are_added_by_the_first_of_them(replicas, counted, batch):
    with fake_ranks(1, 3):
        metric = CrossEntropy()
        metric.update(dataclasses.replace(score_tokens(*batch), replicas=replicas))
        assert metric.counts()["counted"] == counted
