"""A packed metric alone: contexts that sync, copies, and a sync on each step."""

from __future__ import annotations

import pytest
import torch
from support import distributed_jobs as jobs
from support.distributed import run

from xent_metrics import CrossEntropy
from xent_metrics.errors import InvalidInputError, SyncError


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
