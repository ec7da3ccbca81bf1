"""Packed sums over processes: one SUM all_reduce of int64 for a metric, or for a whole collection.

Who syncs: torchmetrics' `compute`, `sync` and `sync_context`, through `PackedMetric`; and `TokenMetricCollection`.

How many all_reduces a process makes depends only on its sequence of compute and sync calls and on resets of whole
collections: never on updates, on a metric's own resets, on loads, caches or errors, which differ between processes.
Nothing local changes before an all_reduce has succeeded, and canaries have shown that what came back is the total.

The all_reduce runs on CPUs, see groups.py: the states are copied there in one piece, and the totals back in one.
docs/distributed.md says which promise was shown how; NCCL was not run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from xent_metrics.errors import SyncError
from xent_metrics.sums import exact_sum
from xent_metrics.sums.canaries import Canary
from xent_metrics.sums.groups import cpu_group, is_member, rank_in

__all__ = ["SharedSync", "SyncedState", "all_reduce_states", "synced"]

_FEWEST = 128  # rows that are sent, at the least: 8 kB


class SyncedState(Protocol):
    """What is synced: a metric with one packed state.

    Attributes:
        name: for error messages.
        process_group: the group over which it is synced; None is the default group.
        described_sums: what its rows are, in the same words on all processes.
    """

    process_group: Any
    described_sums: str

    @property
    def name(self) -> str:
        """The metric's name."""
        ...

    @property
    def local_state(self) -> Tensor:
        """This process' own sums ``(rows, 8)``, synced or not; replaced, never changed in place."""
        ...

    @property
    def was_restored_alone(self) -> bool:
        """True if its sums come from a checkpoint that was loaded when there were no other processes."""
        ...

    def can_sync(self) -> bool:
        """True if there are other processes to sync with."""
        ...

    def syncs_with(self, other: Any) -> bool:
        """True if one all_reduce may serve this metric and `other`."""
        ...

    def hold(self, total: Tensor) -> None:
        """Hold the sums over all processes in place of the local ones, until `release`."""
        ...

    def release(self) -> None:
        """Hold the local sums again; after a reset since `hold`, stay reset."""
        ...


def all_reduce_states(metrics: Sequence[SyncedState], group: Any = None) -> list[Tensor]:
    """The sums of `metrics` over the processes of `group`, by one all_reduce; the metrics are left as they are.

    Raises:
        SyncError: another process died, hung or never came; it computed other metrics; this process failed itself; what
            came back is not a total; or a checkpoint would count more than once.
    """
    if not is_member(group):
        return [metric.local_state.clone() for metric in metrics]
    local = [metric.local_state for metric in metrics]
    theirs = False
    try:
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        carrier = cpu_group(group)
        with carrier.sync() as number:
            canary = Canary(rank, size, number, [f"{metric.name} {metric.described_sums}" for metric in metrics])
            packed = _packed(local, [metric.was_restored_alone for metric in metrics], canary.row())
            theirs = True
            carrier.all_reduce(packed, group)
            theirs = False
            if fault := canary.fault_in([packed[0].tolist(), packed[-1].tolist()]):
                raise SyncError(fault)
    except Exception as error:  # whatever it is, `SharedSync` counts it as a sync, as the other processes do
        raise SyncError(_failure(metrics, group, error, theirs)) from error
    rows = sum(len(state) for state in local)
    _check_restored(metrics, packed[1 + rows :, 0].tolist())
    return _split(exact_sum.carry(packed[1 : 1 + rows]), local)


def _packed(local: Sequence[Tensor], restored_alone: Sequence[bool], canary: Sequence[int]) -> Tensor:
    """What a process sends: a canary, its states, a row per metric with a flag, zeros, the canary again; on the CPU.

    Zeros, so that processes with different metrics mostly send as much as each other. gloo aborts a process that gets more
    than it expects, before it could read the canaries.
    """
    device = local[0].device
    states = torch.cat([state.to(device) for state in local]).cpu()  # one copy from the device
    rows = 2 + len(states) + len(local)
    padding = max(_FEWEST, 1 << (rows - 1).bit_length()) - rows
    flags = states.new_zeros(len(local) + padding, exact_sum.ROW)
    flags[: len(local), 0] = states.new_tensor(restored_alone)
    ends = states.new_tensor([canary])
    return torch.cat([ends, states, flags, ends])


def _split(totals: Tensor, local: Sequence[Tensor]) -> list[Tensor]:
    """The totals of each state, where the state is; one copy to each device."""
    sizes = [len(state) for state in local]
    by_device = {device: torch.split(totals.to(device), sizes) for device in {state.device for state in local}}
    return [by_device[state.device][i].clone() for i, state in enumerate(local)]


def _check_restored(metrics: Sequence[SyncedState], restored_on: Sequence[int]) -> None:
    for metric, processes in zip(metrics, restored_on, strict=False):
        if processes > 1:
            raise SyncError(
                f"{metric.name}: a checkpoint was loaded on {processes} processes before their process group existed, and "
                f"would count {processes} times. Load it after torch.distributed.init_process_group"
            )


def _failure(metrics: Sequence[SyncedState], group: Any, error: Exception, theirs: bool) -> str:
    names = ", ".join(str(metric.name) for metric in metrics)
    if isinstance(error, SyncError):
        reason = f"{error}. "
    elif theirs and isinstance(error, RuntimeError):  # the base of what torch.distributed raises
        reason = (
            f"{type(error).__name__}: {error}. Another process died, hung or raised before it got here, or the group's time "
            "limit is too short. "
        )
    else:
        reason = (
            f"{type(error).__name__}: {error}. It failed in this process itself; the others, which wait for it, learn of it "
            "at the group's time limit. "
        )
    return (
        f"{_place(group)}: adding up {names} over the processes failed: {reason}The local sums are unchanged: update, "
        "state_dict and compute can be called again; a group that failed is best replaced (destroy_process_group and "
        "init_process_group, or metric.process_group = …)"
    )


def _place(group: Any) -> str:
    try:
        rank, size = rank_in(group)
    except ValueError:
        return "in a process group that was destroyed"
    return f"rank {rank} of {size}"


@contextmanager
def synced(metrics: Sequence[SyncedState]) -> Iterator[None]:
    """Let `metrics` hold the sums over all processes inside, by one all_reduce per process group among them.

    A compute inside makes no collective; a metric that is reset inside stays reset.
    """
    by_group: dict[int, list[SyncedState]] = {}
    for metric in metrics:
        if metric.can_sync():
            by_group.setdefault(id(metric.process_group), []).append(metric)
    members = [metric for group in by_group.values() for metric in group]
    totals, failures = list[Tensor](), list[SyncError]()
    for group in by_group.values():
        try:
            totals += all_reduce_states(group, group[0].process_group)
        except SyncError as error:  # the processes of the next group wait for this one
            failures.append(error)
    if failures:
        raise failures[0]
    for metric, total in zip(members, totals, strict=True):
        metric.hold(total)
    try:
        yield
    finally:
        for metric in members:
            metric.release()


@dataclass(frozen=True)
class _Unread:
    """A member's total after a sync by another member, until its own compute takes it."""

    synced_by: Any
    local: Tensor  # the member's own sums when they were added up
    total: Tensor | SyncError


class SharedSync:
    """One all_reduce for metrics that are computed one by one, as Lightning's `log_dict` does.

    The first compute() syncs all; each other member reuses its total once. Which of the two a compute does follows from
    the order of the computes alone, so all processes agree. A total that no longer belongs to what this process holds
    is taken, too, but raises: the other processes can't know, so they don't wait, and use the total of that time.

    So compute the members with nothing in between, and reset the collection, which drops unread totals. Or compute the
    same members in the same order each time: a member that was left out of an epoch may be reset and updated, and is
    served again once the first of the others is computed.
    """

    def __init__(self, metrics: Iterable[SyncedState]) -> None:
        self.metrics = list(metrics)
        self._unread: dict[int, _Unread] = {}

    def forget(self) -> None:
        """Drop the unread totals; on all processes."""
        self._unread.clear()

    def total(self, metric: SyncedState) -> Tensor:
        """The sums of `metric` over all processes."""
        if id(metric) not in self._unread:
            self._sync_all(metric)
        unread = self._unread.pop(id(metric))
        if isinstance(unread.total, SyncError):
            raise unread.total
        if unread.local is not metric.local_state:
            raise SyncError(
                f"{metric.name} was updated, reset or loaded after {unread.synced_by}.compute() had synced their "
                "collection, so the total of that time is not what it holds now. Compute the collection, or its members "
                "with nothing in between, and reset the collection rather than members; "
                f"the next compute of {metric.name}, on all processes, syncs afresh"
            )
        return unread.total

    def _sync_all(self, metric: SyncedState) -> None:
        # In the collection's order, whichever comes first: so processes may differ in that.
        members = [member for member in self.metrics if member is metric or member.syncs_with(metric)]
        totals: Sequence[Tensor | SyncError]
        try:
            totals = all_reduce_states(members, metric.process_group)
        except SyncError as error:  # a failure is everyone's: the number of collectives stays the same on all processes
            with_it = f"synced together with {metric.name}: {error}"
            totals = [error if member is metric else SyncError(with_it) for member in members]
        for member, total in zip(members, totals, strict=True):
            self._unread[id(member)] = _Unread(metric.name, member.local_state, total)
