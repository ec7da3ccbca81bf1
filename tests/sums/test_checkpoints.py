"""Checkpoints of packed sums, on any number of ranks."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from support import distributed_jobs as jobs
from support.distributed import run

from xent_metrics import CrossEntropy, from_loglikelihoods


@pytest.fixture(scope="module")
def expected():
    return jobs.alone()


def dealt_in_turn(size: int, numbers: range = range(jobs.BATCHES)) -> list[list[int]]:
    return [[n for n in numbers if n % size == rank] for rank in range(size)]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 3)])
def test_a_synced_checkpoint_resumes_on_any_number_of_ranks(before, after, expected):
    first, rest = range(5), range(5, jobs.BATCHES)
    files = run(before, jobs.save, dealt_in_turn(before, first), before > 1)
    for file in files:
        assert run(after, jobs.resume, [file], dealt_in_turn(after, rest), 2) == [expected] * after


def test_an_unsynced_checkpoint_loads_on_its_own_rank_of_as_many(expected):
    files = run(2, jobs.save, dealt_in_turn(2, range(5)), False)
    assert run(2, jobs.resume, files, dealt_in_turn(2, range(5, jobs.BATCHES))) == [expected] * 2
    (alone,) = run(1, jobs.resume, files[1:], None)
    assert "cross_entropy: the checkpoint holds the sums of rank 1 of 2 alone; this is rank 0 of 1. To load it" in alone
    first, second = run(2, jobs.resume, files[:1], None)
    assert first == "loaded"
    assert "the sums of rank 0 of 2 alone; this is rank 1 of 2" in second


def test_a_checkpoint_without_an_origin_is_for_one_process():
    metric = CrossEntropy()
    metric.update(from_loglikelihoods([-3.0], row_kind="token"))
    other = CrossEntropy()
    other.load_state_dict({metric.state_name: metric.state})
    assert other.compute() == 3
    assert other.state is not metric.state


def test_a_load_before_the_group_exists_is_found_out(tmp_path, expected):
    (file,) = run(1, jobs.save, [list(range(jobs.BATCHES))], False)
    for error, after_reset in run(3, jobs.load_too_early, file, str(Path(tmp_path, "a")), [0, 2]):
        assert "a checkpoint was loaded on 2 processes before their process group existed" in error
        assert set(after_reset["values"].values()) == {"nan"}
    answers = run(3, jobs.load_too_early, file, str(Path(tmp_path, "b")), [1])
    assert [answer[0] for answer in answers] == [expected] * 3


def test_a_checkpoint_that_was_cut_off_anywhere_is_refused(tmp_path):
    """As a process leaves it that is killed while it writes."""
    metric, path = CrossEntropy(), tmp_path / "sums.pt"
    metric.persistent(True)
    metric.update(torch.zeros(4, 8), torch.zeros(4, dtype=torch.long))
    torch.save(metric.state_dict(), path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 50):
        path.write_bytes(whole[:size])
        with pytest.raises((RuntimeError, EOFError, pickle.UnpicklingError)):
            torch.load(path, weights_only=True)
    path.write_bytes(whole)
    again = CrossEntropy()
    again.persistent(True)
    again.load_state_dict(torch.load(path, weights_only=True))
    assert again.counts() == metric.counts()


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        (0, [1, 2], r"holds a value of type list as sums_\w+; expected int64 of shape \(5, 8\)"),
        (0, torch.zeros(3, 8, dtype=torch.int64), r"holds int64 of shape \(3, 8\) as sums_"),
        (0, torch.zeros(5, 8), r"holds float32 of shape \(5, 8\) as sums_"),
        (1, "rank 0", "a value of type str as sums_origin"),
        (
            1,
            torch.zeros(2, dtype=torch.int64),
            r"holds int64 of shape \(2,\) as sums_origin; expected int64 of shape \(3,\)",
        ),
    ],
)
def test_what_are_no_sums_is_refused_and_changes_nothing(entry, value, said, batch):
    metric = CrossEntropy()
    metric.update(*batch)
    metric.persistent(True)
    saved, before = metric.state_dict(), metric.state.clone()
    saved[list(saved)[entry]] = value
    with pytest.raises(RuntimeError, match=said):
        metric.load_state_dict(saved)
    assert torch.equal(metric.state, before)
