"""Samples that Lightning's distributed sampler repeats, in real processes: masked, or refused with the reason."""

import pytest
from support import strategy_jobs as jobs
from support.distributed import run
from support.lightning import Sequences, table

from xent_metrics import get_metric


def cross_entropy(data, indices, clamped=False):
    target = data.target[indices].clamp(0) if clamped else data.target[indices]
    metric = get_metric("cross_entropy")
    metric.update(table()[data.ids[indices, :-1]], target)
    return metric.compute().item()


def test_repeated_samples_are_masked_or_refused_for_every_kind_of_loader():
    data = Sequences(11)
    want = cross_entropy(data, range(11))
    reasons = {
        "backwards": "the loader's batch sampler, Backwards, may use an order of its own",
        "foreign class": "the loader's batch sampler, Batched, may use an order of its own",
        "in parallel": "each step draws from 2 loaders in parallel",
        "rows": "the step returned 27 sequences for a batch of 3 samples",
    }
    for found in run(2, jobs.repeated, 11):
        assert found["usual"] == found["batch_size=None"] == want
        assert found["soft targets"] == pytest.approx(cross_entropy(data, range(11), clamped=True), rel=1e-7)
        for name, reason in reasons.items():
            assert found[name].startswith("the sampler repeats some of 11 samples to give every rank equally many")
            assert f"which they are is unknown: {reason}." in found[name]
    for found in run(2, jobs.repeated, 10):  # nothing is repeated, and nothing refused
        assert {value for name, value in found.items() if name != "soft targets"} == {
            cross_entropy(Sequences(10), range(10))
        }


def test_repeated_samples_count_twice_on_request():
    twice = cross_entropy(Sequences(11), [*range(11), 0])
    for found in run(2, jobs.repeated, 11, False):
        assert {value for name, value in found.items() if name != "soft targets"} == {twice}
