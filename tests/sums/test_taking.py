"""Sums taken together: in few launches, of each sequence as of itself alone, by a plugin's backend if there is one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.device_ops import Launches, on_device

from xent_metrics import (
    BitsPerByte,
    CrossEntropy,
    ExpectedCalibrationError,
    Grouped,
    Position,
    StandardError,
    TokenMetricCollection,
    get_metric,
    hookimpl,
    score_tokens,
)
from xent_metrics.errors import InvalidInputError, PluginError
from xent_metrics.hosts.transformers import TrainerMetrics
from xent_metrics.sums import exact_sum
from xent_metrics.sums.taking import by_sequence, take_sums, take_sums_by_sequence
from xent_metrics.sums.terms import Binned
from xent_metrics.testing import no_host_sync

TABLE = torch.arange(13) % 5


def eight() -> TokenMetricCollection:
    """The eight of benchmarks/scoring.py."""
    names = ["cross_entropy", "perplexity", "token_accuracy", "calibration_weighted_cross_entropy"]
    others = {
        "bits": CrossEntropy(unit="bits"),
        "bits_per_byte": BitsPerByte(token_bytes=TABLE),
        "expected": ExpectedCalibrationError(),
        "largest": get_metric("maximum_calibration_error"),
    }
    return TokenMetricCollection({name: name for name in names} | others)


def launches_of_update(metric) -> int:
    members = metric.members().values() if isinstance(metric, TokenMetricCollection) else [metric]
    with no_host_sync() as device:
        for member in members:
            on_device(member, device)
        scores = score_tokens(torch.empty(4, 8, 13, device=device), torch.zeros(4, 8, dtype=torch.long, device=device))
        with Launches() as launches:
            metric.update(scores)
    return launches.total


@pytest.mark.parametrize(
    ("metric", "most"),
    [
        (CrossEntropy, 60),
        (eight, 150),
        (lambda: StandardError(CrossEntropy()), 200),
        (lambda: StandardError(ExpectedCalibrationError()), 240),
        (lambda: Grouped(CrossEntropy(), by=Position([0, 4])), 110),
    ],
    ids=["cross_entropy", "eight", "its_error", "error_of_bins", "grouped"],
)
def test_an_update_launches_few_kernels(metric, most):
    assert 0 < launches_of_update(metric()) <= most


@pytest.mark.parametrize("sequences", [1, 16])
def test_the_trainers_metrics_dont_loop_over_sequences(sequences):
    names = ["cross_entropy", "perplexity", "token_accuracy", "expected_calibration_error"]
    metrics = TrainerMetrics([*names, {"metric": "bits_per_byte", "token_bytes": TABLE}])
    with no_host_sync() as device:
        for member in metrics.metrics.members().values():
            on_device(member, device)
        logits = torch.empty(sequences, 9, 13, device=device)
        with Launches() as launches:
            metrics.preprocess_logits(logits, torch.zeros(sequences, 9, dtype=torch.long, device=device))
    assert 0 < launches.total <= 300


METRICS = [
    CrossEntropy(),
    get_metric("calibration_weighted_cross_entropy", num_bins=3),
    BitsPerByte(token_bytes=TABLE),
    Grouped(CrossEntropy(), by=Position([0, 3])),
    get_metric("classwise_calibration_error", classes=13),
]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_the_sums_of_each_sequence_are_those_of_the_sequence_alone(metric, weighted, batch):
    logits, target = batch
    logits[1, 2] = float("nan")
    target[0, 3] = 99
    scores = metric.score(logits, target, weight=torch.rand(3, 8) if weighted else None)
    by_one = torch.stack([metric.exact_sums(scores[i]) for i in range(3)])
    assert torch.equal(metric.exact_sums_by_sequence(scores), by_one)
    assert torch.equal(exact_sum.merge(by_one), metric.exact_sums(dataclasses.replace(scores)))


def test_no_sequences_have_no_sums(batch):
    scores = score_tokens(*batch)[:0]
    assert CrossEntropy().exact_sums_by_sequence(scores).shape == (0, 5, 8)


def test_terms_that_no_sequence_owns_have_no_sums_by_sequence(batch):
    scores = score_tokens(*batch)
    with pytest.raises(InvalidInputError, match=r"each of 3 sequences, \(3, …\); those of mean are \(1,\)"):
        take_sums_by_sequence(scores, {"mean": torch.ones(1)})


def test_floats_and_bools_go_in_one_pass_and_whole_numbers_in_another(batch, monkeypatch):
    passes = []
    monkeypatch.setattr(
        exact_sum, "exact_sums", lambda values: (passes.append(values.dtype), torch.zeros(len(values), 8).long())[1]
    )
    scores = score_tokens(*batch)
    big = torch.full_like(scores.target, 2**60 + 1)
    take_sums(scores, {"a": scores.nll, "b": scores.counted, "c": big, "d": scores.nll.double(), "e": scores.correct})
    assert passes == [torch.float32, torch.int64, torch.float64]  # on a GPU, two: a pass costs more there


class Backend:
    """A plugin with an `exact_sums_backend` that remembers what it was asked."""

    def __init__(self, answer):
        self.asked = []

        @hookimpl
        def exact_sums_backend(values, bins, num_bins):
            self.asked.append((values, bins, num_bins))
            return answer(values, bins, num_bins)

        self.exact_sums_backend = exact_sums_backend


def by_torch(values, bins, num_bins):
    bins = torch.zeros(values.shape[1], dtype=torch.long) if bins is None else bins
    return exact_sum.exact_sums_by_bin(values, bins, num_bins)


def test_a_plugins_backend_takes_all_sums(batch, install, monkeypatch):
    metrics = {
        "cross_entropy": CrossEntropy(),
        "ece": ExpectedCalibrationError(),
        "error": StandardError(CrossEntropy()),
    }
    want = {name: metric.exact_sums(score_tokens(*batch)) for name, metric in metrics.items()}
    backend = Backend(by_torch)
    install(backend)
    for name, metric in metrics.items():
        assert torch.equal(metric.exact_sums(score_tokens(*batch)), want[name])
    for values, bins, num_bins in backend.asked:
        assert values.ndim == 2
        assert num_bins == 1 if bins is None else bins.shape == values.shape[1:]
    assert {bins is None for _, bins, _ in backend.asked} == {True, False}


def test_a_backend_may_leave_sums_to_torch(batch, install):
    want = CrossEntropy().exact_sums(score_tokens(*batch))
    backend = Backend(lambda *given: None)
    install(backend)
    assert torch.equal(CrossEntropy().exact_sums(score_tokens(*batch)), want)
    assert len(backend.asked) == 1


def test_a_backend_isnt_asked_about_no_rows_tensors_without_data_or_in_a_graph(batch, install):
    backend = Backend(lambda *given: 1 / 0)
    install(backend)
    CrossEntropy().exact_sums(score_tokens(*batch)[:0])
    launches_of_update(CrossEntropy())
    torch.compile(CrossEntropy().exact_sums, backend="eager", fullgraph=True)(score_tokens(*batch))
    assert backend.asked == []


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda *given: 7, "backend1.*: exact_sums_backend returned 7; expected int64 of shape"),
        (
            lambda *given: by_torch(*given)[:, 0],
            r"returned \(5, 8\) of int64 on cpu; expected int64 of shape \(5, 1, 8\)",
        ),
        (lambda *given: by_torch(*given).int(), "of int32 on cpu; expected int64"),
        (lambda *given: 1 / 0, "exact_sums_backend raised ZeroDivisionError"),
    ],
)
def test_a_backend_that_breaks_its_contract_is_named(answer, text, batch, install):
    install(Backend(answer))
    with pytest.raises(PluginError, match=text):
        CrossEntropy().update(*batch)


def test_binned_terms_over_the_same_bins_go_together(batch, monkeypatch):
    taken = []
    whole = exact_sum.exact_sums_by_bin
    monkeypatch.setattr(
        exact_sum, "exact_sums_by_bin", lambda values, *bins: (taken.append(len(values)), whole(values, *bins))[1]
    )
    scores = score_tokens(*batch)
    bins = scores.counted.long()
    terms = {
        "a": Binned(scores.nll, bins, 2),
        "b": Binned(scores.correct, bins, 2),
        "c": Binned(scores.nll, 1 - bins, 2),
    }
    take_sums_by_sequence(scores, terms)
    assert taken == [2, 1]
    assert scores.memo[by_sequence("a")].shape == (3, 2, 8)
