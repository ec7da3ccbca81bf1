"""Any metric by group: each group's value is that of the metric on its rows alone, to the bit."""

from __future__ import annotations

import math

import pytest
import torch
from support.registered import buildable

from xent_metrics import (
    BitsPerByte,
    CrossEntropy,
    Document,
    ExpectedCalibrationError,
    Frequency,
    Grouped,
    Perplexity,
    Position,
    TokenAccuracy,
    TokenMetricCollection,
    from_loglikelihoods,
    get_metric,
    in_groups,
    score_tokens,
)
from xent_metrics.analysis import StandardError, delta_interval
from xent_metrics.errors import InvalidInputError, MetricOptionError, MissingScoreError
from xent_metrics.testing import check_metric, made_up_batch
from xent_metrics.testing.case import own_scores
from xent_metrics.wrappers.standard_error import standard_error

V = 13


METRICS = [
    CrossEntropy(),
    Perplexity(),
    TokenAccuracy(),
    ExpectedCalibrationError(num_bins=4),
    BitsPerByte(token_bytes=torch.arange(V)),
    CrossEntropy(label_smoothing=0.1),
    get_metric("brier_score"),
    get_metric("optimal_temperature"),  # several values a row
    get_metric("full_calibration_error", num_bins=4),
    get_metric("classwise_calibration_error", classes=V, num_bins=3),
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
    rows = metric.score(logits, target).flatten()
    for index, label in enumerate("abc"):
        alone = metric.clone()
        alone.update(rows[group.flatten() == index])
        assert torch.equal(grouped.group_states()[label], alone.state)
        assert torch.equal(grouped.by_group()[label], alone.compute())
    whole = metric.clone()
    whole.update(logits, target)
    assert float(grouped.compute()) == pytest.approx(float(whole.compute()), rel=1e-14)


@pytest.mark.parametrize("name", buildable())
def test_every_registered_metric_can_be_grouped(name):
    metric = get_metric(name)
    scores = own_scores(metric, *made_up_batch(metric, generator=torch.Generator().manual_seed(2)))
    grouped = Grouped(metric, by=Position([0, 3]))
    grouped.update(scores)
    for label, rows in (("0–2", scores[:, :3]), ("3+", scores[:, 3:])):
        assert torch.equal(grouped.group_states()[label], metric.exact_sums(rows))


def test_metrics_of_two_models_are_grouped_too(batch):
    logits, _ = batch
    other = logits.flip(-1) / 2
    metric = Grouped(get_metric("kl_divergence_quantile", quantile=0.5), by=Position([0, 5]))
    metric.update(logits, other)
    alone = get_metric("kl_divergence_quantile", quantile=0.5)
    alone.update(logits[:, 5:], other[:, 5:])
    assert metric.by_group()["5+"] == alone.compute()


def test_group_states_keep_what_a_float_would_round():
    metric = Grouped(CrossEntropy(), by=Position([0, 1]))
    texts = [from_loglikelihoods([-(2.0**40), -(2.0**-60)], row_kind="token") for _ in range(3)]
    for text in texts:
        metric.update(text)
        metric.update(text.map(lambda tensor: tensor.flip(0)))
    alone = CrossEntropy()
    for text in texts:
        alone.update(text)
    for state in metric.group_states().values():
        assert torch.equal(state, alone.state)


def test_groups_are_read_whatever_the_default_device(batch):
    metric = Grouped(CrossEntropy(), by=Position([0, 3]))
    metric.update(*batch)
    expected = metric.by_group()
    with torch.device("meta"):  # as under `torch.set_default_device("cuda")`
        assert metric.by_group() == expected


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


@pytest.mark.filterwarnings("ignore:.*gave nan")
def test_a_nan_is_no_lack_of_rows(batch):
    logits, target = (tensor.clone() for tensor in batch)
    logits[0, 0], target[0, 0] = torch.nan, 1
    metric = Grouped(CrossEntropy(), by="group", labels=["a", "b"], average="macro")
    metric.update(logits, target, group=[0, 0, 0, 1, 1, 1])
    values = metric.by_group()
    assert values["a"].isnan()
    assert values["b"].isfinite()
    assert metric.compute().isnan()
    assert metric.compute(nan_policy="omit").isfinite()


def test_rows_of_no_group_are_counted(batch):
    logits, target = batch
    metric = Grouped(CrossEntropy(), by="group", labels=["a", "b"])
    metric.update(logits, target, group=[0, 1, 2, -1, 5, 0])
    outside = int((target[2:5] != -100).sum())
    assert metric.counts()["in_no_group"] == outside
    assert metric.counts()["counted"] == int((target != -100).sum())


def test_the_ids_travel_in_the_scores(batch):
    logits, target = batch
    ids = torch.tensor([0, 0, 1, 1, 1, 9])
    want = Grouped(CrossEntropy(), by="group", labels=["a", "b"])
    batch_value = want(logits, target, group=ids)  # forward takes them, too
    assert torch.equal(batch_value, want.compute())
    members = {
        "plain": CrossEntropy(),
        "grouped": Grouped(CrossEntropy(), by="group", labels=["a", "b"]),
        "macro": Grouped(CrossEntropy(), by="group", labels=["a", "b"], average="macro"),
        "error": StandardError(Grouped(CrossEntropy(), by="group", labels=["a", "b"])),
    }
    metrics = TokenMetricCollection(members)
    scores = in_groups(score_tokens(logits, target), ids)
    for rows in (slice(0, 2), slice(2, 6)):
        metrics.update(scores[rows])
    assert torch.equal(metrics.members()["grouped"].state, want.state)
    macro = sum(want.by_group().values()) / 2
    assert float(metrics.compute()["macro"]) == pytest.approx(float(macro), rel=1e-15)
    assert metrics.compute()["error"] > 0


def test_documents_come_in_pieces_and_are_what_intervals_take(batch):
    logits, target = batch
    ids = torch.tensor([2, 0, 1, 0, 2, 2])  # parts of three documents, of four
    parts = [Grouped(CrossEntropy(), by=Document(4)) for _ in range(2)]
    for row in (5, 1, 0):
        parts[0].update(logits[row : row + 1], target[row : row + 1], group=ids[row : row + 1])
    for row in (4, 2, 3):  # without the dimension of the batch
        parts[1].update(logits[row], target[row], group=ids[row])
    parts[0].merge_state(parts[1])
    states = torch.stack(list(parts[0].group_states().values()))
    scores = score_tokens(logits, target)
    whole = torch.stack([CrossEntropy().exact_sums(scores[ids == document]) for document in range(4)])
    assert torch.equal(states, whole)
    assert delta_interval(CrossEntropy(), states) == delta_interval(CrossEntropy(), whole[:3])
    assert parts[0].by_group()["3"].isnan()


@pytest.mark.parametrize("metric", [CrossEntropy(), Perplexity(), ExpectedCalibrationError(num_bins=3)], ids=repr)
def test_errors_by_group_are_those_of_the_groups_rows(batch, metric):
    logits, target = batch
    grouped = Grouped(metric, by=Position([0, 7]))
    error = StandardError(grouped)
    error.update(logits, target)
    scores = grouped.score(logits, target)
    documents = torch.stack([grouped.exact_sums(scores[row]) for row in range(6)])
    for label, states in grouped.group_states(documents).items():
        assert float(error.by_group()[label]) == pytest.approx(standard_error(metric, states), rel=1e-8)
        assert error.by_group()[label] > 0
    with pytest.raises(MetricOptionError, match="has no groups"):
        StandardError(metric).by_group()


def test_a_group_without_rows_leaves_the_others_their_errors(batch):
    logits, target = batch
    macro = Grouped(CrossEntropy(), by=Position([0, 7, 100]), average="macro")
    error = StandardError(macro)
    error.update(logits, target)
    without = StandardError(Grouped(CrossEntropy(), by=Position([0, 7]), average="macro"))
    without.update(logits, target)
    assert float(error.compute()) == pytest.approx(float(without.compute()), rel=1e-12)
    assert error.by_group()["100+"].isnan()
    assert error.by_group()["0–6"].isfinite()


def test_a_plot_shows_the_groups(batch):
    from matplotlib import pyplot

    metric = Grouped(TokenAccuracy(), by=Position([0, 4, 8]))
    metric.update(*batch)
    figure, axes = metric.plot()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0–3", "4–7", "8+"]
    (line,) = axes.lines[:1]
    assert line.get_ydata().tolist() == [float(value) for value in metric.by_group().values()]
    pyplot.close(figure)
    figure, given = pyplot.subplots()
    assert metric.plot(ax=given)[1] is given
    assert given.get_xticklabels()[2].get_text() == "8+"
    pyplot.close(figure)
    figure, axes = metric.plot([metric.compute(), metric.compute()])  # over steps, as torchmetrics has it
    assert axes.get_title() == "token accuracy by group"
    pyplot.close(figure)


def test_groups_are_this_process_own_and_all_processes_inside_sync_context(batch):
    from matplotlib import pyplot

    logits, target = batch
    whole, there = (Grouped(TokenAccuracy(), by=Position([0, 4])) for _ in range(2))
    whole.update(logits, target)
    there.update(logits[2:], target[2:])
    here = Grouped(
        TokenAccuracy(),
        by=Position([0, 4]),
        dist_sync_fn=lambda state, group: [state, there.state],
        distributed_available_fn=lambda: True,
    )
    here.update(logits[:2], target[:2])
    own = here.by_group()
    assert torch.equal(here.compute(), whole.compute())
    assert here.by_group() == own != whole.by_group()
    with here.sync_context(here.dist_sync_fn):
        assert here.by_group() == whole.by_group()
    figure, axes = here.plot()
    assert axes.lines[0].get_ydata().tolist() == [float(value) for value in whole.by_group().values()]
    assert here.by_group() == own
    pyplot.close(figure)


def test_it_is_better_the_way_the_metric_is(batch):
    assert Grouped(TokenAccuracy(), by=Position([0])).higher_is_better is True
    assert Grouped(CrossEntropy(), by=Position([0])).higher_is_better is False
    assert Grouped(Perplexity(), by=Position([0])).interval_scale == "log"


def test_groups_keep_the_contract():
    check_metric(
        Grouped(get_metric("optimal_temperature"), by=Frequency([0, 4], counts=torch.arange(11))), vocab_size=11
    )
    check_metric(Grouped(CrossEntropy(), by=Frequency([0, 4], counts=torch.arange(11))), vocab_size=11)
    check_metric(
        Grouped(get_metric("brier_score"), by=Frequency([0, 9], counts=torch.arange(11)), average="macro"),
        vocab_size=11,
    )


def test_bad_input_is_an_error(batch):
    logits, target = batch
    metric = Grouped(CrossEntropy(), by="group", labels=["a"])
    with pytest.raises(MissingScoreError, match="`group`"):
        metric.update(logits, target)
    with pytest.raises(
        InvalidInputError, match=r"group has one id per row or per sequence, of shape \(6, 20\).*got \(5,\)"
    ):
        metric.update(logits, target, group=torch.zeros(5))
    with pytest.raises(MissingScoreError, match=r"pass update\(…, group=ids\), or scores from in_groups"):
        metric.update(score_tokens(logits, target))
    with pytest.raises(MetricOptionError, match=r"sums over sequences, not over rows, and can't be grouped"):
        Grouped(StandardError(CrossEntropy()), by=Position([0]))
    with pytest.raises(MetricOptionError, match="the number of documents, at least 1; got 0"):
        Document(0)
    with pytest.raises(MetricOptionError, match=r'"group" with labels=\[…\]; got .domain.'):
        Grouped(CrossEntropy(), by="domain", labels=["a"])
    with pytest.raises(MetricOptionError, match=r"got .group. with labels=\[\]"):
        Grouped(CrossEntropy(), by="group")
    with pytest.raises(MetricOptionError, match="edges rise"):
        Position([3, 3])
    with pytest.raises(InvalidInputError, match=r"counts has one entry per class, \(13,\); got \(2,\)"):
        Grouped(CrossEntropy(), by=Frequency([0], counts=[1, 2])).update(logits, target)
