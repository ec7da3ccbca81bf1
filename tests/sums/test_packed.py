"""A packed metric alone: contexts that sync, copies, and a sync on each step."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from support import distributed_jobs as jobs
from support.distributed import run
from torchmetrics.utilities.exceptions import TorchMetricsUserError

from xent_metrics import BitsPerByte, CrossEntropy, StandardError, TokenMetricCollection
from xent_metrics.errors import InvalidInputError, SyncError
from xent_metrics.sums import exact_sum


def test_copies_stand_alone_and_their_members_together():
    for found in run(2, jobs.copies):
        assert found == {"clone": 1, "deepcopy": 1, "pickle": 1, "clone of a member, then the others": 1}


def test_contexts_sync_once_and_leave_everything_as_it_was():
    for found in run(2, jobs.contexts):
        assert found.pop("refused").startswith(
            "cross_entropy holds the sums of all processes, to which nothing can be added"
        )
        assert found == {"same": True, "calls": 4}


def test_sync_on_step_is_of_all_batches_of_a_step():
    assert run(2, jobs.on_step) == [[0.0, 0.5, 2.25, 2.25], [1.0, 0.5, 2.25, 2.25]]


def test_what_a_sync_would_drop_is_refused():
    """Inside a sync the metric holds the total, which is given up at its end with all that was added to it."""
    metric, other = CrossEntropy(), CrossEntropy()
    other.update(torch.zeros(2, 4), torch.tensor([0, 1]))
    other.persistent(True)
    before = metric.state
    metric.hold(torch.zeros_like(before))
    with pytest.raises(SyncError, match="to which nothing can be added; unsync it first"):
        metric.merge_state(other)
    with pytest.raises(RuntimeError, match="holds the sums of all processes, which end with the sync"):
        metric.load_state_dict(other.state_dict())
    metric.release()
    assert metric.state is before
    metric.merge_state(other)
    assert metric.compute() == other.compute()


def test_only_metrics_and_their_states_are_merged():
    with pytest.raises(InvalidInputError, match="merges a metric or its `metric_state`; got 2"):
        CrossEntropy().merge_state(2)


def materialised(build):
    """A metric built in a model on meta, after the model got its memory."""
    with torch.device("meta"):
        model = torch.nn.ModuleDict({"head": torch.nn.Linear(3, 4), "metric": build()})
    return model.to_empty(device="cpu")["metric"]


def test_a_metric_built_on_meta_starts_from_nothing_and_resets_to_it():
    table = np.array([1, 2, 3, 4])
    for build in (CrossEntropy, lambda: BitsPerByte(token_bytes=table), lambda: StandardError(CrossEntropy())):
        metric, want = materialised(build), build()
        for _ in range(2):
            assert not metric.state.any()
            metric.update(torch.zeros(3, 2, 4), torch.tensor([[0, 1], [2, 2], [3, 1]]))
            want.update(torch.zeros(3, 2, 4), torch.tensor([[0, 1], [2, 2], [3, 1]]))
            assert metric.state.equal(want.state)
            metric.reset()
            want.reset()


def test_memory_that_is_given_anew_keeps_the_sums():
    metric = CrossEntropy()
    metric.update(torch.zeros(2, 4), torch.tensor([0, 1]))
    before = metric.state.clone()
    model = torch.nn.ModuleList([metric])
    for module in (metric, model):
        module.to_empty(device="cpu")
        assert metric.state.equal(before)
    model.to("meta").to_empty(device="cpu")  # what was on meta is gone
    assert not metric.state.any()
    metric.reset()
    assert not metric.state.any()


def test_threads_lose_no_row(monkeypatch):
    """They may update one metric, or one collection, at the same time."""
    monkeypatch.setattr(exact_sum, "carry", _slow(exact_sum.carry))
    alone, together = CrossEntropy(), TokenMetricCollection(["cross_entropy", "token_accuracy"])

    def update() -> None:
        for _ in range(20):
            for metric in (alone, together):
                metric.update(torch.zeros(2, 4), torch.tensor([0, 1]))

    threads = [threading.Thread(target=update) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [metric.counts()["counted"] for metric in (alone, *together.members().values())] == [160] * 3


def _slow(function):
    """The same, after other threads had their turn."""

    def after_others(*args):
        time.sleep(1e-5)
        return function(*args)

    return after_others


def test_a_value_inside_a_sync_is_that_of_all_processes():
    metric = CrossEntropy(distributed_available_fn=lambda: True)
    metric.update(torch.zeros(2, 4), torch.tensor([0, 1]))
    other = torch.tensor([[3.0, 0.0, 0.0, 0.0]])
    theirs = CrossEntropy()
    theirs.update(other, torch.tensor([0]))

    def gather(state, group):
        return [state, theirs.state]

    with metric.sync_context(dist_sync_fn=gather):
        inside = metric.compute()
        assert metric.counts()["counted"] == 3
        with pytest.raises(TorchMetricsUserError, match="already been synced"), metric.sync_context():
            pass
    assert metric.counts()["counted"] == 2
    both = CrossEntropy()
    both.update(torch.cat([torch.zeros(2, 4), other]), torch.tensor([0, 1, 0]))
    assert inside == both.compute()


def test_forward_gives_the_value_of_a_subclass_own_compute():
    class Rounded(CrossEntropy):
        def compute(self, **options):
            return super().compute(**options).round(decimals=1)

    metric = Rounded()
    assert metric(torch.zeros(2, 4), torch.tensor([0, 1])) == pytest.approx(1.4)
    assert metric(torch.zeros(1, 8), torch.tensor([0])) == pytest.approx(2.1)
    assert metric.compute() == pytest.approx(1.6)  # (2 ln 4 + ln 8) / 3
    assert metric.counts()["counted"] == 3
