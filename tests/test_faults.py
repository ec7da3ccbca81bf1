"""A process dies, hangs or raises: the others hear of it in the group's time limit, lose nothing, and compute again."""

from __future__ import annotations

from pathlib import Path

import fault_jobs as jobs
import pytest
from distributed_support import DIED, run

CASES = [
    ("dies", "before"),
    ("dies", "in"),
    ("dies", "after"),
    ("hangs", "before"),
    ("hangs", "in"),
    ("hangs", "after"),
    ("raises", "before"),
    ("raises", "in"),
    ("raises", "after"),
]


@pytest.mark.parametrize(("what", "when"), CASES)
def test_the_others_lose_nothing_and_compute_again(what, when, tmp_path):
    size = 3
    *others, faulty = run(size, jobs.fault, what, when, str(Path(tmp_path, "again")), seconds=jobs.SECONDS)
    back = size if what == "raises" else size - 1
    if what == "dies":
        assert faulty == DIED
    for rank, found in enumerate([*others, faulty][:back]):
        assert found["intact"]
        assert found["values"] == jobs.together(back)
        assert found["calls"] == 1
        if rank < size - 1:
            names = "cross_entropy, expected_calibration_error, perplexity, token_accuracy"
            assert found["error"].startswith(f"rank {rank} of 3: adding up {names} over the processes failed: ")
            assert "The local sums are what they were" in found["error"]
            first, *rest = found["singly"]
            assert first.startswith(f"rank {rank} of 3: adding up cross_entropy, ")
            assert all(error.startswith("synced together with cross_entropy: rank ") for error in rest)


def test_nan_on_one_rank_is_counted_on_all_and_the_finite_part_is_there():
    for found in run(3, jobs.not_a_number):
        assert found["value"] == "nan"
        assert found["warning"].startswith("cross_entropy: 3 of 24 rows gave nan; `compute(finite_only=True)`")
        assert found["counts"] == {"counted": 24, "ignored": 0, "invalid_targets": 0, "nan": 3, "infinite": 1}
        assert found["finite"] == found["in a collection"] == pytest.approx(1.6094379 * 20 / 21, rel=1e-7)


def test_invalid_targets_on_one_rank_are_everyones_error():
    for found in run(2, jobs.invalid_targets):
        assert found["intact"]
        assert found["together"].startswith("cross_entropy: 1 targets were neither a class in [0, V)")
        assert found["alone"].startswith("perplexity: 1 targets were neither a class in [0, V)")
        assert found["finite"] == pytest.approx(8)
        assert found["later"] == jobs.together(2)
