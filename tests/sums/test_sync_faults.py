"""A process dies, hangs or raises: the others hear of it in the group's time limit, lose nothing, and compute again."""

from __future__ import annotations

import re
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from support import fault_jobs as jobs
from support.distributed import DIED, TRIES, fake_ranks, run

from xent_metrics import TokenMetricCollection
from xent_metrics.errors import SyncError

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
    for _ in range(TRIES if (what, when) == ("dies", "in") else 1):
        *others, faulty = run(size, jobs.fault, what, when, str(tmp_path), seconds=jobs.SECONDS)
        if not any(found["error"].startswith("no error but") for found in others):
            break  # else it died when it had done its part
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
            assert "The local sums are unchanged" in found["error"]
            first, *rest = found["singly"]
            assert first.startswith(f"rank {rank} of 3: adding up cross_entropy, ")
            assert all(error.startswith("synced together with cross_entropy: rank ") for error in rest)


@pytest.mark.parametrize(
    ("function", "error", "told"),
    [
        ("cat", RuntimeError("no space"), "RuntimeError: no space. It failed in this process itself"),
        ("distributed.all_reduce", MemoryError("full"), "MemoryError: full. It failed in this process itself"),
        (
            "distributed.all_reduce",
            dist.DistBackendError("gone"),
            "DistBackendError: gone. Another process died, hung or raised",
        ),
        ("distributed.all_reduce", RuntimeError("reset"), "RuntimeError: reset. Another process died, hung or raised"),
    ],
)
def test_an_error_is_told_as_this_process_own_or_the_others(function, error, told):
    metrics = TokenMetricCollection(["cross_entropy", "token_accuracy"])
    metrics.update(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with fake_ranks(0, 2):
        with (
            mock.patch(f"torch.{function}", side_effect=error),
            pytest.raises(SyncError, match=re.escape(told)),
        ):
            metrics["cross_entropy"].compute()
        with pytest.raises(SyncError, match="synced together with cross_entropy"):  # no collective, as on the others
            metrics["token_accuracy"].compute()


def test_nan_on_one_rank_is_counted_on_all_and_the_finite_part_is_there():
    for found in run(3, jobs.not_a_number):
        assert found["value"] == "nan"
        assert found["warning"].startswith("cross_entropy: 3 of 24 rows gave nan; `compute(nan_policy='omit')`")
        assert found["counts"] == {"counted": 24, "ignored": 0, "invalid_targets": 0, "nan": 3, "infinite": 1}
        assert found["finite"] == found["in a collection"] == pytest.approx(1.6094379 * 20 / 21, rel=1e-7)


def test_invalid_targets_on_one_rank_are_everyones_error():
    for found in run(2, jobs.invalid_targets):
        assert found["intact"]
        assert found["together"].startswith("cross_entropy: 1 targets were neither a class in [0, V)")
        assert found["alone"].startswith("perplexity: 1 targets were neither a class in [0, V)")
        assert found["finite"] == pytest.approx(8)
        assert found["later"] == jobs.together(2)
