"""What the processes of test_groups.py do, under backends that stand in for NCCL, see standins.py."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from support import standins
from support.distributed import join, wait_for_all
from support.distributed_jobs import NAMES, batch
from support.fault_jobs import SECONDS, error_of, states_of
from xent_metrics import CrossEntropy, TokenMetricCollection, from_loglikelihoods
from xent_metrics.sums import groups


def rejoin(rendezvous: str, rank: int, size: int, backend: str, seconds: float = 300) -> None:
    """Another default group in place of the job's own."""
    if dist.is_initialized():
        dist.destroy_process_group()
    standins.register()
    join(rendezvous, rank, size, seconds, backend=backend)


@contextmanager
def made() -> Iterator[list[int]]:
    """The numbers of the syncs in which a gloo group is made inside."""
    numbers, make = list[int](), groups._gloo_beside

    def counted(group: Any, number: int) -> Any:
        numbers.append(number)
        return make(group, number)

    with mock.patch.object(groups, "_gloo_beside", counted):
        yield numbers


def collection(rank: int) -> TokenMetricCollection:
    metrics = TokenMetricCollection(NAMES)
    metrics.update(batch(rank))
    return metrics


def values(metrics: TokenMetricCollection) -> list[str]:
    return [value.item().hex() for value in metrics.compute().values()]


def beside(rank: int, size: int, rendezvous: str, backend: str) -> dict[str, Any]:
    """Two epochs under one default group and one under the next; the processes are in different numbers of groups."""
    found: dict[str, Any] = {"values": []}
    gc.collect()
    before = len(groups._cpu_groups)  # of groups that an earlier job in this process left alive
    for attempt in "ab":
        rejoin(rendezvous + attempt, rank, size, backend)
        dist.new_group([0, 1], backend="gloo")
        with made() as numbers:
            metrics = collection(rank)
            found["values"] += [values(metrics), values(metrics)]
            found["singly"] = [metrics[name].compute().item().hex() for name in metrics]
        found[attempt] = numbers
        found["limit"] = str(groups._time_limit(dist.group.WORLD))
    dist.destroy_process_group()
    gc.collect()
    found["left"] = len(groups._cpu_groups) - before
    return found


def unreduced(rank: int, size: int, rendezvous: str, backend: str) -> dict[str, Any]:
    """A backend that returns too early."""
    rejoin(rendezvous, rank, size, backend)
    metrics = collection(rank)
    local = states_of(metrics)
    errors = [error_of(metrics.compute), error_of(metrics["perplexity"].compute)]
    time.sleep(2 * standins.DELAY)  # a tensor that is added up only now has been thrown away
    return {"errors": errors, "intact": states_of(metrics) == local}


def fault(rank: int, size: int, what: str, when: str, rendezvous: str) -> dict[str, Any]:
    """The last process fails in the sync that makes the gloo group, or in the next; those who can compute again."""
    rejoin(rendezvous, rank, size, standins.CUDA_ONLY, SECONDS)
    metrics = collection(rank)
    if when == "later":
        metrics.compute()
    local, found = states_of(metrics), dict[str, Any]()
    wait_for_all("ready", rank, size)
    if rank == size - 1:
        _go_wrong(what)
    began = time.monotonic()
    with mock.patch("torch.cat", side_effect=MemoryError("mine")) if what == "raises" and rank == size - 1 else made():
        found["error"] = error_of(metrics.compute)
    found["seconds"] = time.monotonic() - began
    found["intact"] = states_of(metrics) == local
    if what == "dies":
        rejoin(f"{rendezvous} again", rank, size - 1, standins.CUDA_ONLY)
    else:
        wait_for_all("again", rank, size)
    found["values"] = values(metrics)
    return found


def _go_wrong(what: str) -> None:
    if what == "dies":
        os._exit(1)
    if what == "comes late":
        time.sleep(SECONDS + 2)


def nodes(rank: int, size: int, rendezvous: str, backend: str) -> dict[str, Any]:
    """Eight processes as torchrun would start them on two nodes: metrics over all, over a node, and across nodes."""
    per_node = size // 2
    node, place = divmod(rank, per_node)
    with mock.patch.dict(
        os.environ, {"LOCAL_RANK": str(place), "GROUP_RANK": str(node), "LOCAL_WORLD_SIZE": str(per_node)}
    ):
        rejoin(rendezvous, rank, size, backend)
        within = [dist.new_group([n * per_node + p for p in range(per_node)], backend=backend) for n in range(2)][node]
        across = [dist.new_group([p, per_node + p], backend=backend) for p in range(per_node)][place]
        by_group = {"all": None, "within": within, "across": across}
        if backend == "gloo":
            mesh = init_device_mesh("cpu", (2, per_node), mesh_dim_names=("node", "place"))
            by_group |= {"mesh within": mesh["place"].get_group(), "mesh across": mesh["node"].get_group()}
        metrics = TokenMetricCollection({name: CrossEntropy(process_group=group) for name, group in by_group.items()})
        metrics.update(from_loglikelihoods([-float(2**rank)], row_kind="token"))
        with made() as numbers:
            together = {name: value.item() for name, value in metrics.compute().items()}
            singly = {name: metrics[name].compute().item() for name in by_group}
            ranks = {name: groups.rank_in(group) for name, group in by_group.items()}
        return {"together": together, "singly": singly, "ranks": ranks, "made": len(numbers)}
