"""A packed metric alone: contexts that sync, copies, and a sync on each step."""

from __future__ import annotations

from support import distributed_jobs as jobs
from support.distributed import run


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
