"""Process groups: where this process is in one, and what adds up its members' packed sums, on CPUs.

A packed state is a few kilobytes, so it is added up on CPUs wherever the metrics are. A group that has a backend for CPU
tensors is used as it is: gloo, mpi, or "cpu:gloo,cuda:nccl". Beside any other, as a group of nccl or xccl alone, there is a
gloo group of the same processes. Its time limit raises in the process that waits, and no stream of a device waits for it.

The processes make that gloo group together in their first sync, and make a new one in the sync after one that failed.
They find each other by the store of their own group, under the number of the sync. So the number of groups that
processes are in, in which they may differ, plays no part, as it does in the names that `new_group` makes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from xent_metrics.errors import MissingExtraError

__all__ = ["CPUGroup", "cpu_group", "is_member", "rank_in"]


def is_member(group: Any = None) -> bool:
    """False if `group` is what torch gives the processes outside of a group in its place."""
    return group is not dist.GroupMember.NON_GROUP_MEMBER


def rank_in(group: Any = None) -> tuple[int, int]:
    """This process' rank in `group` and the group's size; ``(0, 1)`` without a group, or outside of it.

    Raises:
        ValueError: the group was destroyed.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    rank = dist.get_rank(group)
    return (rank, dist.get_world_size(group)) if rank >= 0 else (0, 1)


class CPUGroup:
    """What adds up tensors on CPUs over the processes of one group.

    Attributes:
        number: how many syncs this process has begun in the group; the same on all of its processes.
    """

    def __init__(self) -> None:
        self.number = 0
        self._gloo: Any = None  # beside a group that has no backend for CPU tensors

    @contextmanager
    def sync(self) -> Iterator[int]:
        """One sync, which has this number; after an error inside, the next one makes a new gloo group."""
        self.number += 1
        try:
            yield self.number
        except BaseException:
            self._gloo = None
            raise

    def all_reduce(self, tensor: Tensor, group: Any = None) -> None:
        """Add up `tensor` in place over the processes of `group`.

        Raises:
            RuntimeError: of torch.distributed, if another process died, hung or never came.
            MissingExtraError: this torch has no gloo, and the group needs one beside it.
        """
        if "cpu" in (pair.partition(":")[0] for pair in dist.get_backend_config(group).split(",")):
            dist.all_reduce(tensor, group=group)
            return
        if self._gloo is None:
            self._gloo = _gloo_beside(group or dist.group.WORLD, self.number)
        self._gloo.allreduce([tensor]).wait()


_cpu_groups: weakref.WeakKeyDictionary[Any, CPUGroup] = weakref.WeakKeyDictionary()


def cpu_group(group: Any = None) -> CPUGroup:
    """The one `CPUGroup` of a process group, for as long as that exists; None is the default group."""
    return _cpu_groups.setdefault(group or dist.group.WORLD, CPUGroup())


def _gloo_beside(group: Any, number: int) -> Any:
    """A gloo group of the processes of `group`, made by all of them in the sync of this number.

    It isn't registered: `destroy_process_group` and later groups of the caller's don't know of it. It uses the private
    `_get_process_group_store`, and `PrefixStore` and `ProcessGroupGloo`, as read in torch 2.13.
    """
    if not dist.is_gloo_available():
        raise MissingExtraError(
            f"this torch has no gloo, which adds up sums beside {dist.get_backend_config(group)}; "
            "install one that has (torch.distributed.is_gloo_available()), or set the metrics' process_group to a group "
            "with a backend for CPU tensors"
        )
    limit = _time_limit(group)
    rank, size = rank_in(group)
    own = dist.distributed_c10d._get_process_group_store(group)
    store = dist.PrefixStore(f"xent_metrics/{number}/", own)  # type: ignore[attr-defined]
    _meet(store, size, limit)
    return dist.ProcessGroupGloo(store, rank, size, timeout=limit)


def _meet(store: Any, size: int, limit: timedelta) -> None:
    """Wait until all processes are here. If one comes too late, all hear of it: those who wait, and the late one at once."""
    if store.add("here", 1) == size:
        store.compare_set("outcome", "", "met")
    try:
        store.wait(["outcome"], limit)
    except RuntimeError:
        store.compare_set("outcome", "", "missed")  # unless the last one came in this very moment
    if store.get("outcome") != b"met":
        raise dist.DistStoreError(f"of {size} processes, {store.add('here', 0)} came within {limit} of each other")


def _time_limit(group: Any) -> timedelta:
    """The group's own time limit, or torch's default where its backend doesn't tell.

    By the private `_device_types`, `_get_backend` and `_timeout`, as read in torch 2.13.
    """
    for device in group._device_types:
        backend = group._get_backend(device)
        options = getattr(
            getattr(backend, "wrapped_pg", backend), "options", None
        )  # wrapped under TORCH_DISTRIBUTED_DEBUG
        if isinstance(limit := getattr(options, "_timeout", None), timedelta):
            return limit
    return dist.distributed_c10d.default_pg_timeout
