"""PackedMetric: a torchmetrics Metric with one int64 tensor as its whole state, synced by one all_reduce.

The private attributes of `torchmetrics.Metric` that are used here were read in torchmetrics 1.9: `_is_synced`, `_cache`
(the local state while synced), `_to_sync`, `_sync_dist`, `_wrap_compute` and `_copy_state_dict`. If one of them moves, change
this file; checkpoints.py and metric.py say which others they use.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from xent_metrics.sums import exact_sum
from xent_metrics.sums.placement import keeping_values
from xent_metrics.sums.sync import SharedSync, all_reduce_states

__all__ = ["PackedMetric", "add_together", "one_at_a_time"]


class PackedMetric(Metric):
    """A torchmetrics Metric with one int64 tensor of exact sums, ``(rows, 8)``, as its whole state."""

    name: ClassVar[str]
    described_sums: str
    shared_sync: SharedSync | None = None  # the collection's, if the metric is in one
    was_restored_alone = False
    _state_name: str
    _held: tuple[Any, ...] | None = None
    _in_compute = False
    _in_forward = False
    _held_back: list[Tensor] | None = None  # sums that `add_together` will add

    @property
    def state(self) -> Tensor:
        """The packed exact sums, int64 ``(rows, 8)``: all that the metric knows, merged by addition."""
        state: Tensor = getattr(self, self._state_name)
        return state

    @property
    def state_name(self) -> str:
        """The name of the state among torchmetrics' states; equal for metrics that hold the same sums."""
        return self._state_name

    def _set_state(self, state: Tensor) -> None:
        setattr(self, self._state_name, state)

    def add_sums(self, sums: Tensor) -> None:
        """Add exact sums ``(rows, 8)`` to the state, now or at the end of `add_together`."""
        with one_at_a_time():
            if self._held_back is None:
                self._set_state(exact_sum.carry(self.state + sums))
            else:
                self._held_back.append(sums)

    @property
    def local_state(self) -> Tensor:
        """This process' own sums, also inside `sync_context`."""
        if not self._is_synced or self._cache is None:
            return self.state
        local = self._cache[self._state_name]
        assert isinstance(local, Tensor)
        return local

    def _wrap_update(self, update: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap update as torchmetrics does; in a graph without its counter, whose every value would be another graph."""
        wrapped = super()._wrap_update(update)

        @functools.wraps(update)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling():
                return wrapped(*args, **kwargs)
            self._computed, self._update_count = None, 1  # that there was an update is all that we read
            with torch.no_grad():
                return update(*args, **kwargs)

        return counted

    # Sync.

    def can_sync(self) -> bool:
        """True if there are other processes to sync with."""
        return bool(self.distributed_available_fn())

    def may_sync_together(self) -> bool:
        """True if the next `compute` may be synced by a collection, in one all_reduce with other metrics."""
        return self._to_sync and self.dist_sync_fn is None

    def is_due_to_sync(self) -> bool:
        """True if the next `compute` makes a collective."""
        return self._to_sync and self.can_sync()

    def syncs_with(self, other: PackedMetric) -> bool:
        """True if one all_reduce may serve this metric and `other`."""
        return self.sync_on_compute and self.dist_sync_fn is None and self.process_group is other.process_group

    def hold(self, total: Tensor) -> None:
        """Hold the sums over all processes in place of the local ones, until `release`."""
        self._held = (self._held, self.state, self._cache, self._is_synced)
        self._cache = {self._state_name: self.local_state}
        self._set_state(total)
        self._is_synced, self._to_sync = True, False

    def release(self) -> None:
        """Hold the local sums again; after a reset since `hold`, stay reset."""
        assert self._held is not None
        self._held, state, cache, was_synced = self._held
        self._to_sync = self.sync_on_compute
        if self._is_synced:
            self._set_state(state)
            self._cache, self._is_synced = cache, was_synced

    def _counts_here(self, replicas: tuple[int, ...]) -> bool:
        """True if this process adds rows that `replicas` hold too: the first of those that are synced with it does."""
        if not (self.sync_on_compute or self.dist_sync_on_step) or not self.can_sync():
            return True
        ranks, rank = dist.get_process_group_ranks(self.process_group or dist.group.WORLD), dist.get_rank()
        return rank not in ranks or rank == next(replica for replica in replicas if replica in ranks)

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any = None) -> None:
        """Add up all processes' states in one all_reduce, or through the caller's own `dist_sync_fn`."""
        if dist_sync_fn is not gather_all_tensors:
            super()._sync_dist(dist_sync_fn, process_group)
        elif self.shared_sync is not None and self._in_compute and not self._in_forward:
            self._set_state(self.shared_sync.total(self))
        else:
            self._set_state(all_reduce_states([self], process_group or self.process_group)[0])

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap compute as torchmetrics does, and let `_sync_dist` tell it from a sync that the caller asked for."""
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
        """Like torchmetrics', but an exception inside leaves the metric as it was before the sync."""
        names = ("dist_sync_fn", "process_group", "should_sync", "should_unsync", "distributed_available")
        given = dict(zip(names, args, strict=False)) | kwargs
        should_unsync = given.pop("should_unsync", True)
        was_synced = self._is_synced  # then whoever synced it unsyncs it
        if was_synced and self._in_compute:
            given["should_sync"] = False  # the value of what it holds
        self.sync(**given)
        try:
            yield
        finally:
            self.unsync(should_unsync=self._is_synced and not was_synced and should_unsync)

    @contextmanager
    def over_all_processes(self) -> Generator[None, None, None]:
        """Hold the sums that `compute` would use, for reading more of them than one value: for plots."""
        with self.sync_context(self.dist_sync_fn, should_sync=self._to_sync and not self._is_synced):
            yield

    def _copy_state_dict(self) -> dict[str, Any]:
        """The state itself: it is replaced, never changed in place, and `SharedSync` knows it by identity."""
        return {self._state_name: self.state}

    def reset(self) -> None:
        """Go back to no data."""
        super().reset()
        self.was_restored_alone = False

    # Places and copies.

    def _apply(  # type: ignore[override]  # takes what torchmetrics and torch pass
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "", recurse: bool = True
    ) -> PackedMetric:
        """Move the sums with their values, also for `to_empty`, which passes `recurse`."""
        super()._apply(keeping_values(fn), exclude_state)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """A copy is alone; a copy of a collection links its members again."""
        return {name: value for name, value in super().__getstate__().items() if name != "shared_sync"}

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedMetric:
        """A copy in the same process group, which can't be copied itself."""
        memo[id(self.process_group)] = self.process_group
        other = memo[id(self)] = type(self).__new__(type(self))
        other.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return other


_adding = threading.RLock()


def one_at_a_time() -> AbstractContextManager[object]:
    """A context for one thread at a time, in which a state is read, added to and replaced: threads may update one metric."""
    return nullcontext() if torch.compiler.is_compiling() else _adding


def add_together(metrics: Sequence[PackedMetric], update: Callable[[], None]) -> None:
    """Call `update`, which updates these metrics, and add to all their states in one go; if it raises, to none."""
    with one_at_a_time():
        _add_together(metrics, update)


def _add_together(metrics: Sequence[PackedMetric], update: Callable[[], None]) -> None:
    for metric in metrics:
        metric._held_back = []
    try:
        update()
        added = [(metric, metric._held_back) for metric in metrics if metric._held_back]
    finally:
        for metric in metrics:
            metric._held_back = None
    by_device: dict[torch.device, list[tuple[PackedMetric, Tensor]]] = {}
    for metric, parts in added:
        sums = parts[0] if len(parts) == 1 else exact_sum.merge(torch.stack(parts))
        by_device.setdefault(sums.device, []).append((metric, sums))
    for group in by_device.values():
        before, sums = (torch.cat(parts) for parts in zip(*((metric.state, own) for metric, own in group), strict=True))
        sizes = [len(own) for _, own in group]
        after: Sequence[Tensor] = torch.split_with_sizes_copy(exact_sum.carry(before + sums), sizes)  # type: ignore[func-returns-value, assignment]  # torch's stub has no result
        for (metric, _), state in zip(group, after, strict=True):
            metric._set_state(state)
