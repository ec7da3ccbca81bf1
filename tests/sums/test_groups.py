"""Sums that go over CPUs whatever the backend: real processes, under backends that stand in for NCCL."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from support import fault_jobs, standins
from support import standin_jobs as jobs
from support.distributed import DIED, fake_ranks, run

from xent_metrics import CrossEntropy, from_loglikelihoods
from xent_metrics.errors import SyncError
from xent_metrics.sums import groups


@pytest.mark.parametrize(
    ("backend", "made", "limit"),
    [
        (standins.CUDA_ONLY, [1], "0:05:00"),
        (standins.IDLE_CUDA_ONLY, [1], "0:30:00"),
        (f"cpu:gloo,cuda:{standins.CUDA_ONLY}", [], "0:05:00"),
        ("gloo", [], "0:05:00"),
    ],
)
def test_totals_are_right_beside_any_backend_and_gloo_is_made_once_for_a_group(backend, made, limit, tmp_path):
    expected = fault_jobs.together(3)
    for found in run(3, jobs.beside, str(tmp_path / "file"), backend):
        assert found["values"] == [sorted_by_name(expected)] * 4
        assert found["singly"] == sorted_by_name(expected)
        assert (found["a"], found["b"]) == (made, made)
        assert found["limit"] == limit
        assert found["left"] == 0


def sorted_by_name(values):
    by_name = dict(zip(jobs.NAMES, values, strict=True))
    return [by_name[name] for name in sorted(by_name)]


@pytest.mark.parametrize("backend", [standins.IDLE, standins.LATE])
def test_what_was_not_added_up_is_never_a_total(backend, tmp_path):
    for found in run(2, jobs.unreduced, str(tmp_path / "file"), backend):
        assert found["intact"]
        for error in found["errors"]:
            assert "what came back is not the sum over 2 processes: it has 1 and 1 of them in its first" in error


@pytest.mark.parametrize("when", ["first", "later"])
@pytest.mark.parametrize("what", ["dies", "comes late", "raises"])
def test_a_fault_is_everyones_error_and_the_next_sync_makes_another_group(what, when, tmp_path):
    *others, faulty = run(3, jobs.fault, what, when, str(tmp_path / "file"))
    if what == "dies":
        assert faulty == DIED
    back = others if what == "dies" else [*others, faulty]
    for found in back:
        assert found["error"].startswith("rank ")
        assert "over the processes failed: " in found["error"]
        assert found["intact"]
        assert found["values"] == sorted_by_name(fault_jobs.together(len(back)))
    for found in others:
        assert "Another process died, hung or raised before it got here" in found["error"]
    if what == "comes late":
        assert "Another process died, hung or raised before it got here" in faulty["error"]
        assert faulty["seconds"] < fault_jobs.SECONDS


@pytest.mark.parametrize("backend", [standins.CUDA_ONLY, "gloo"])
def test_groups_within_nodes_and_across_them(backend, tmp_path):
    for rank, found in enumerate(run(8, jobs.nodes, str(tmp_path / "file"), backend)):
        node, place = divmod(rank, 4)
        within = sum(2.0 ** (4 * node + p) for p in range(4)) / 4
        across = (2.0**place + 2.0 ** (4 + place)) / 2
        own = {"all": 255 / 8, "within": within, "across": across}
        ranks = {"all": (rank, 8), "within": (place, 4), "across": (node, 2)}
        if backend == "gloo":
            own |= {"mesh within": within, "mesh across": across}
            ranks |= {"mesh within": (place, 4), "mesh across": (node, 2)}
        assert found["together"] == found["singly"] == own
        assert found["ranks"] == ranks
        assert found["made"] == (0 if backend == "gloo" else 3)


def test_a_destroyed_group_is_an_error_and_not_used_again():
    metric = CrossEntropy()
    metric.update(from_loglikelihoods([-1.0], row_kind="token"))
    with fake_ranks(0, 2):
        metric.process_group = dist.group.WORLD
    with (
        fake_ranks(0, 2),
        pytest.raises(SyncError, match=r"in a process group that was destroyed: .* is not registered"),
    ):
        metric.compute()


def test_without_a_group_this_process_is_alone():
    assert groups.rank_in() == (0, 1)
    metric = CrossEntropy(distributed_available_fn=lambda: True)
    metric.update(from_loglikelihoods([-1.0], row_kind="token"))
    with pytest.raises(SyncError, match="Default process group has not been initialized"):
        metric.compute()


def test_a_torch_without_gloo_is_told(monkeypatch):
    monkeypatch.setattr(dist, "is_gloo_available", lambda: False)
    monkeypatch.setattr(dist, "get_backend_config", lambda group=None: "cuda:nccl")
    with (
        fake_ranks(0, 2),
        pytest.raises(SyncError, match=r"this torch has no gloo.* beside cuda:nccl; .* in this process"),
    ):
        CrossEntropy().compute()


@pytest.mark.parametrize("told", ["by its options", "by those it wraps", "not at all"])
def test_the_time_limit_is_the_groups_own(told):
    backend = SimpleNamespace(options=SimpleNamespace(_timeout=timedelta(seconds=7)))
    if told == "by those it wraps":
        backend = SimpleNamespace(wrapped_pg=backend)
    elif told == "not at all":
        backend = SimpleNamespace()
    group = SimpleNamespace(_device_types=["cuda"], _get_backend=lambda device: backend)
    expected = timedelta(minutes=30) if told == "not at all" else timedelta(seconds=7)
    assert groups._time_limit(group) == expected


@pytest.mark.parametrize(("others_came", "outcome"), [(False, b"missed"), (True, b"met")])
def test_a_process_that_gives_up_as_the_last_one_comes_takes_the_outcome_of_all(others_came, outcome):
    class Store(dict):
        def add(self, key, value):
            self[key] = self.get(key, 0) + value
            return self[key]

        def wait(self, keys, limit):
            if others_came:
                self.compare_set("outcome", "", "met")
            raise RuntimeError("wait timeout")

        def compare_set(self, key, expected, desired):
            self.setdefault(key, desired.encode())

    store = Store()
    if others_came:
        groups._meet(store, 2, timedelta(seconds=1))
    else:
        with pytest.raises(dist.DistStoreError, match="of 2 processes, 1 came within 0:00:01 of each other"):
            groups._meet(store, 2, timedelta(seconds=1))
    assert store["outcome"] == outcome
