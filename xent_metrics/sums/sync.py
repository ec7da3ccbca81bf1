"""Packed sums over processes: one SUM all_reduce of int64 for a metric, or for a whole collection.

Who syncs: torchmetrics' `compute`, `sync` and `sync_context`, through `PackedMetric`; and `TokenMetricCollection`.

How many all_reduces a process makes depends only on its sequence of compute and sync calls and on resets of whole
collections: never on updates, on a metric's own resets, on loads, caches or errors, which differ between processes.
Nothing local changes before an all_reduce has succeeded.

Shown with gloo in real processes and with a fake process group of 1,024 ranks; NCCL was not run.
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

__all__ = ["SharedSync", "SyncedState", "all_reduce_states", "rank_in", "synced"]


class SyncedState(Protocol):
    """What is synced: a metric with one packed state.

    Attributes:
        name: for error messages.
        process_group: the group over which it is synced; None is the default group.
    """

    process_group: Any

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


def rank_in(group: Any = None) -> tuple[int, int]:
    """This process' rank in `group` and the group's size; ``(0, 1)`` without a group, or outside of it."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    rank = dist.get_rank(group)
    return (rank, dist.get_world_size(group)) if rank >= 0 else (0, 1)


def all_reduce_states(metrics: Sequence[SyncedState], group: Any = None) -> list[Tensor]:
    """The sums of `metrics` over the processes of `group`, by one all_reduce; the metrics are left as they are.

    Raises:
        SyncError: another process died, hung or never came; this one failed; or a checkpoint would count more than once.
    """
    local = [metric.local_state for metric in metrics]
    reducing = False
    try:
        # One more row per metric: on how many processes its checkpoint was loaded as if there were no others.
        alone = local[0].new_tensor([[metric.was_restored_alone] + [0] * (exact_sum.ROW - 1) for metric in metrics])
        packed = torch.cat([*(state.to(alone.device) for state in local), alone])
        reducing = True
        dist.all_reduce(packed, group=group)
        restored_on = packed[-len(metrics) :, 0].tolist()
    except Exception as error:  # whatever it is, `SharedSync` counts it as a sync, as the other processes do
        theirs = reducing and isinstance(error, RuntimeError)  # the base of what torch.distributed raises
        raise SyncError(_failure(metrics, group, error, theirs)) from error
    for metric, processes in zip(metrics, restored_on, strict=True):
        if processes > 1:
            raise SyncError(
                f"{metric.name}: a checkpoint was loaded on {processes} processes before their process group existed, and "
                f"would count {processes} times. Load it after torch.distributed.init_process_group"
            )
    totals = torch.split(exact_sum.carry(packed[: -len(metrics)]), [len(state) for state in local])
    return [total.to(state.device, copy=True) for total, state in zip(totals, local, strict=True)]


def _failure(metrics: Sequence[SyncedState], group: Any, error: Exception, theirs: bool) -> str:
    rank, size = rank_in(group)
    names = ", ".join(str(metric.name) for metric in metrics)
    others = "Another process died, hung or raised before it got here, or the group's time limit is too short"
    own = "It failed in this process itself; the others, which wait for it, learn of it at the group's time limit"
    return (
        f"rank {rank} of {size}: adding up {names} over the processes failed: {type(error).__name__}: {error}. "
        f"{others if theirs else own}. The local sums are unchanged: update, state_dict "
        "and compute can be called again; a group that failed is best replaced (destroy_process_group and "
        "init_process_group, or metric.process_group = …)"
    )


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
    totals = [total for group in by_group.values() for total in all_reduce_states(group, group[0].process_group)]
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
        others = [m for m in self.metrics if m is not metric and m.syncs_with(metric)]
        members, totals = [metric, *others], list[Tensor | SyncError]()
        try:
            totals += all_reduce_states(members, metric.process_group)
        except SyncError as error:  # a failure is everyone's: the number of collectives stays the same on all processes
            totals += [error, *(SyncError(f"synced together with {metric.name}: {error}") for _ in others)]
        for member, total in zip(members, totals, strict=True):
            self._unread[id(member)] = _Unread(metric.name, member.local_state, total)
