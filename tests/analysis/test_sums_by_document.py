"""Sums as numbers, against packed states."""

from __future__ import annotations

import math

import pytest
import torch

from xent_metrics import CrossEntropy, ExpectedCalibrationError, from_loglikelihoods
from xent_metrics.analysis import bootstrap, compare, delta_interval, sums_by_document
from xent_metrics.analysis.sums_by_document import SumsByDocument
from xent_metrics.sums import exact_sum


def logged(metric, documents, seed=0):
    """Sums as a log has them, with huge, tiny and odd numbers among them."""
    sums = torch.rand(documents, metric.layout.size, generator=torch.Generator().manual_seed(seed)).double() * 9 + 1
    sums[:, :3] = 0
    sums[0, 3], sums[1, 3], sums[2] = 1e15 + 0.1, 1e-30, 0
    return sums


@pytest.mark.parametrize("metric", [CrossEntropy(), ExpectedCalibrationError()])
@pytest.mark.parametrize("chunk", [1, 100])
def test_the_total_and_the_documents_have_the_bits_of_packed_states(metric, chunk, monkeypatch):
    monkeypatch.setattr(sums_by_document, "_CHUNK_SUMS", chunk)
    sums = logged(metric, 20)
    states = exact_sum.exact(sums)
    found, packed = SumsByDocument.rounded(sums.clone()), SumsByDocument.of(states)
    for one in (found, packed):
        assert torch.equal(one.total, exact_sum.merge(states))
        assert torch.equal(one.states(), states)
        assert one.samples.tolist() == [place != 2 for place in range(20)]
    assert torch.equal(found.sums, packed.sums)
    assert found.value(metric) == float(metric.value_of(exact_sum.merge(states)))


def test_analyses_are_the_same_of_states_and_of_sums():
    metric = CrossEntropy()
    states = [exact_sum.exact(logged(metric, 30, seed)[3:]) for seed in (0, 1)]
    sums = [SumsByDocument.of(each) for each in states]
    assert delta_interval(metric, states[0]) == delta_interval(metric, sums[0])
    assert bootstrap(metric, states[0], num_resamples=99) == bootstrap(metric, sums[0], num_resamples=99)
    assert compare(metric, *states, num_resamples=99) == compare(metric, *sums, num_resamples=99)


def test_documents_are_chosen_in_any_order_and_empty_ones_left_out():
    metric = CrossEntropy()
    found = SumsByDocument.named(
        metric, {"nats": torch.tensor([3.0, 0.0, 5.0]), "tokens": torch.tensor([1.0, 0.0, 1.0])}
    )
    assert found.value(metric) == 4
    assert found.at([2, 1]).value(metric) == 5
    assert found.at(range(3)) is found
    assert len(found.without_empty()) == 2
    assert found.without_empty().value(metric) == 4
    assert found.without_empty(torch.tensor([True, True, True])) is found
    assert math.isnan(found.at([1]).value(metric))


def test_the_total_of_states_stays_exact_when_empty_documents_go():
    metric = CrossEntropy()
    nll = [1.0 + 2.0**-40, 2.0**60]  # more bits than a float64 has
    states = torch.stack([metric.exact_sums(from_loglikelihoods([-x for x in nll], row_kind="token"))] * 2)
    states = torch.cat([states, torch.zeros_like(states[:1])])
    found = SumsByDocument.of(states).without_empty()
    assert len(found) == 2
    assert torch.equal(found.total, exact_sum.merge(states))
