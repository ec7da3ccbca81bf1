"""How packed sums are added up over processes, and how a checkpoint says whose sums it holds.

Who syncs: torchmetrics' `compute`, `sync` and `sync_context`, through `PackedMetric._sync_dist`, and a collection
through `add_up`: one SUM all_reduce of int64 a metric, or a collection.

How many all_reduces a process makes depends on the sequence of its compute and sync calls alone: never on updates,
resets, loads, caches or errors, which differ between processes. Nothing local changes before an all_reduce succeeded.

Shown with gloo in real processes and with a fake process group of 1,024 ranks; NCCL was not run.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from . import exact_sum
from .errors import SyncError

__all__ = ["PackedMetric", "Together", "add_up", "rank_in"]

#: The checkpoint's entry beside the sums: whether they were synced, and by which rank of how many they were written.
_ORIGIN = "sums_origin"


def rank_in(group: Any = None) -> tuple[int, int]:
    """This process' rank in `group` and the group's size; ``(0, 1)`` without a group, or outside of it."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    rank = dist.get_rank(group)
    return (rank, dist.get_world_size(group)) if rank >= 0 else (0, 1)


def add_up(metrics: Sequence[PackedMetric], group: Any = None) -> list[Tensor]:
    """The sums of `metrics` over the processes of `group`, by one all_reduce; the metrics are left as they are.

    Raises:
        SyncError: another process died, hung, or never came; or a checkpoint would count more than once.
    """
    local = [metric.local_state for metric in metrics]
    # Beside the sums, one row a metric: on how many processes its checkpoint was loaded as if there were no others.
    alone = local[0].new_tensor([[metric._restored_alone] + [0] * (exact_sum.ROW - 1) for metric in metrics])
    packed = torch.cat([*(state.to(alone.device) for state in local), alone])
    try:
        dist.all_reduce(packed, group=group)
        times = packed[-len(metrics) :, 0].tolist()
    except Exception as error:  # each backend has its own
        raise SyncError(_failure(metrics, group, error)) from error
    for metric, processes in zip(metrics, times, strict=True):
        if processes > 1:
            raise SyncError(
                f"{metric.name}: a checkpoint was loaded on {processes} processes before their process group existed, and "
                "would count as often. Load it after torch.distributed.init_process_group"
            )
    totals = packed[: -len(metrics)].split([len(state) for state in local])
    return [exact_sum.carry(total).to(state.device) for total, state in zip(totals, local, strict=True)]


def _failure(metrics: Sequence[PackedMetric], group: Any, error: Exception) -> str:
    rank, size = rank_in(group)
    names = ", ".join(metric.name for metric in metrics)
    return (
        f"rank {rank} of {size}: adding up {names} over the processes failed: {error}. Another process died, hung or raised "
        "before it got here, or the group's time limit is too short. The local sums are what they were: update, state_dict "
        "and compute can be called again; a group that failed is best replaced (destroy_process_group and "
        "init_process_group, or metric.process_group = …)"
    )


@dataclass(frozen=True)
class _Unread:
    """A member's total after a sync by another member, until its own compute takes it."""

    synced_by: str
    local: Tensor  # the member's own sums when they were added up
    total: Tensor | SyncError


class Together:
    """Metrics that one all_reduce serves when they are computed one by one, as Lightning's `log_dict` does.

    A member that has no unread total adds up all members and leaves each of the others its total; a member that has
    one takes it, without a collective. Which of the two it is follows from the order of the computes. A total that no
    longer belongs to what this process holds is taken too, but raises: the others can't know, and don't wait.
    """

    def __init__(self, metrics: Iterable[PackedMetric]) -> None:
        self.metrics = list(metrics)
        self._unread: dict[int, _Unread] = {}

    def forget(self) -> None:
        """Drop unread totals: all members are being synced afresh."""
        self._unread.clear()

    def total(self, metric: PackedMetric) -> Tensor:
        """The sums of `metric` over all processes."""
        if id(metric) not in self._unread:
            self._add_up(metric)
        unread = self._unread.pop(id(metric))
        if isinstance(unread.total, SyncError):
            raise unread.total
        if unread.local is not metric.local_state:
            raise SyncError(
                f"{metric.name} was updated, reset or loaded after {unread.synced_by}.compute() had synced the collection "
                "they are in, so the total of that time is not what it holds now. Compute the collection, or its members "
                f"with nothing in between; the next compute of {metric.name}, on all processes, syncs afresh"
            )
        return unread.total

    def _add_up(self, metric: PackedMetric) -> None:
        others = [m for m in self.metrics if m is not metric and m._syncs_with(metric)]
        members, totals = [metric, *others], list[Tensor | SyncError]()
        try:
            totals += add_up(members, metric.process_group)
        except SyncError as error:  # a failure is everyone's: the number of collectives stays the same on all processes
            totals += [error, *(SyncError(f"synced together with {metric.name}: {error}") for _ in others)]
        for member, total in zip(members, totals, strict=True):
            self._unread[id(member)] = _Unread(metric.name, member.local_state, total)


class PackedMetric(Metric):
    """A torchmetrics Metric whose whole state is one int64 tensor of exact sums, ``(rows, 8)``.

    Checkpoints: `persistent(True)`, then `state_dict` holds the sums and whose they are. Written inside `sync_context`, or
    by a single process, they are loaded by any number of processes, each giving it to `load_state_dict`, and count once:
    rank 0 of the metric's process group takes them, the others start from zero. Written by one of many without a sync,
    they load on that rank of as many. The process group must be there before the load.
    """

    name: ClassVar[str]
    _state_name: str
    _together: Together | None = None
    _in_compute = False
    _in_forward = False
    _restored_alone = False

    @property
    def state(self) -> Tensor:
        """The packed exact sums, int64 ``(rows, 8)``: all that the metric knows, merged by addition."""
        state: Tensor = getattr(self, self._state_name)
        return state

    def _set_state(self, state: Tensor) -> None:
        setattr(self, self._state_name, state)

    @property
    def local_state(self) -> Tensor:
        """This process' own sums, also inside `sync_context`."""
        if not self._is_synced or self._cache is None:
            return self.state
        local = self._cache[self._state_name]
        assert isinstance(local, Tensor)
        return local

    # Sync.

    def _syncs_with(self, other: PackedMetric) -> bool:
        return self.sync_on_compute and self.dist_sync_fn is None and self.process_group is other.process_group

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any = None) -> None:
        """Add up all processes' states in one all_reduce (or through the caller's own `dist_sync_fn`)."""
        if dist_sync_fn is not gather_all_tensors:
            super()._sync_dist(dist_sync_fn, process_group)
        elif self._together is not None and self._in_compute and not self._in_forward:
            self._set_state(self._together.total(self))
        else:
            self._set_state(add_up([self], process_group or self.process_group)[0])

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """torchmetrics' own, and `_sync_dist` can tell a compute from a sync that the caller asked for."""
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def within(*args: Any, **kwargs: Any) -> Any:
            self._in_compute = True
            try:
                return wrapped(*args, **kwargs)
            finally:
                self._in_compute = False

        return within

    @contextmanager
    def sync_context(self, *args: Any, **kwargs: Any) -> Generator[None, None, None]:
        """torchmetrics' own, but an exception inside leaves the metric as it was before the sync."""
        names = ("dist_sync_fn", "process_group", "should_sync", "should_unsync", "distributed_available")
        given = dict(zip(names, args, strict=False)) | kwargs
        should_unsync = given.pop("should_unsync", True)
        was_synced = self._is_synced  # then whoever synced it unsyncs it
        self.sync(**given)
        try:
            yield
        finally:
            self.unsync(should_unsync=self._is_synced and not was_synced and should_unsync)

    def _copy_state_dict(self) -> dict[str, Any]:
        """The state itself: it is replaced, never changed in place, and `Together` knows it by identity."""
        return {self._state_name: self.state}

    def reset(self) -> None:
        """Back to no data."""
        super().reset()
        self._restored_alone = False

    # Copies.

    def __getstate__(self) -> dict[str, Any]:
        """A copy stands alone; a copy of a collection brings its members together again."""
        return {name: value for name, value in super().__getstate__().items() if name != "_together"}

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedMetric:
        """A copy in the same process group, which can't be copied itself."""
        memo[id(self.process_group)] = self.process_group
        other = memo[id(self)] = type(self).__new__(type(self))
        other.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return other

    # Checkpoints.

    def state_dict(  # type: ignore[override]  # torchmetrics' signature
        self, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """The sums, where `persistent`, and beside them whether they are synced and whose they are."""
        entries = super().state_dict(destination, prefix, keep_vars)
        if self._persistent[self._state_name]:
            rank, size = rank_in(self.process_group)
            entries[prefix + _ORIGIN] = torch.tensor([int(self._is_synced), 0 if self._is_synced else rank, size])
        return entries

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *messages: Any
    ) -> None:
        missing, unexpected, errors = messages
        saved = state_dict.pop(prefix + self._state_name, None)
        origin = state_dict.pop(prefix + _ORIGIN, None)
        other = [key for key in state_dict if key.startswith(f"{prefix}sums_")]
        if other:
            errors.append(
                f"{other[0]} holds the sums of a {self.name} with other options than {self!r}; "
                "build the metric as it was when the checkpoint was written"
            )
        if saved is not None:
            errors += self._restore(saved, origin)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def _restore(self, saved: Tensor, origin: Tensor | None) -> list[str]:
        """Take a checkpoint's sums, or what is wrong with them."""
        rank, size = rank_in(self.process_group)
        if origin is None and size > 1:
            return [f"{self.name}: the checkpoint doesn't say whose sums it holds; expected {_ORIGIN} beside them"]
        synced, of_rank, of_size = (1, 0, 1) if origin is None else origin.tolist()
        for_all = synced or of_size == 1
        if not for_all and (of_rank, of_size) != (rank, size):
            return [
                f"{self.name}: the checkpoint holds the sums of rank {of_rank} of {of_size} alone; this is rank {rank} of "
                f"{size}. Write it inside `with metric.sync_context():` (or the collection's) to load it anywhere"
            ]
        takes = rank == 0 or not for_all
        self._set_state((saved.detach().clone() if takes else torch.zeros_like(saved)).to(self.state.device))
        self._restored_alone = size == 1
        self._computed = None
        self._update_count = max(1, self._update_count)
        return []
