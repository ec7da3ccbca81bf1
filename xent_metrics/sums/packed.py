"""PackedMetric: a torchmetrics Metric with one int64 tensor as its whole state, synced by one all_reduce.

Its checkpoints also say whose sums they hold, so that loading one on every process counts it once.

The private attributes of `torchmetrics.Metric` that are used here were read in torchmetrics 1.9: `_is_synced`, `_cache`
(the local state while synced), `_to_sync`, `_computed`, `_update_count`, `_persistent`, `_sync_dist`, `_wrap_compute` and
`_copy_state_dict`. If one of them moves, this is the file to change.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from xent_metrics.sums.sync import SharedSync, all_reduce_states, rank_in

__all__ = ["PackedMetric"]

#: The checkpoint's entry beside the sums: whether they were synced, and by which rank of how many they were written.
_ORIGIN = "sums_origin"


class PackedMetric(Metric):
    """A torchmetrics Metric with one int64 tensor of exact sums, ``(rows, 8)``, as its whole state.

    Checkpoints: after `persistent(True)`, `state_dict` holds the sums and whose they are. Written inside `sync_context`,
    or by a single process, they may be loaded by any number of processes, each calling `load_state_dict`, and count
    once: rank 0 of the metric's process group takes them, the others start from zero. Written by one of many processes
    without a sync, they load only on that rank of as many. The process group must exist before the load.

    After `persistent(True, synced=True)` every `state_dict` syncs: for checkpoints that all processes make together, as
    Lightning's are (DDP, FSDP2). A `state_dict` on rank 0 alone would then wait for the others.
    """

    name: ClassVar[str]
    shared_sync: SharedSync | None = None  # the collection's, if the metric is in one
    was_restored_alone = False
    sums_origin: ClassVar[None] = None  # torch.distributed.checkpoint looks for an attribute of each entry's name
    _state_name: str
    _held: tuple[Any, ...] | None = None
    _in_compute = False
    _in_forward = False
    _saves_synced = False
    _persistent: dict[str, bool]

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

    @property
    def local_state(self) -> Tensor:
        """This process' own sums, also inside `sync_context`."""
        if not self._is_synced or self._cache is None:
            return self.state
        local = self._cache[self._state_name]
        assert isinstance(local, Tensor)
        return local

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

    # Copies.

    def __getstate__(self) -> dict[str, Any]:
        """A copy is alone; a copy of a collection links its members again."""
        return {name: value for name, value in super().__getstate__().items() if name != "shared_sync"}

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedMetric:
        """A copy in the same process group, which can't be copied itself."""
        memo[id(self.process_group)] = self.process_group
        other = memo[id(self)] = type(self).__new__(type(self))
        other.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return other

    # Checkpoints.

    def persistent(self, mode: bool = False, *, synced: bool = False) -> None:
        """Set whether `state_dict` holds the sums, and whether it syncs them first: every process must then call it."""
        super().persistent(mode)
        self._saves_synced = synced

    def syncs_to_save(self) -> bool:
        """True if `state_dict` syncs; the same on all processes, as it depends only on what they do together."""
        return self._saves_synced and self._persistent[self._state_name] and not self._is_synced

    def state_dict(  # type: ignore[override]  # torchmetrics' signature
        self, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """The sums if `persistent`, and beside them whether they are synced and whose they are."""
        with self.sync_context(should_sync=self.syncs_to_save()):
            return self._entries(destination, prefix, keep_vars)

    def _entries(self, destination: dict[str, Any] | None, prefix: str, keep_vars: bool) -> dict[str, Any]:
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
        """Take a checkpoint's sums, or say what is wrong with them."""
        rank, size = rank_in(self.process_group)
        if origin is None and size > 1:
            return [f"{self.name}: the checkpoint doesn't say whose sums it holds; expected {_ORIGIN} beside them"]
        synced, of_rank, of_size = (1, 0, 1) if origin is None else origin.tolist()
        for_all = synced or of_size == 1
        if not for_all and (of_rank, of_size) != (rank, size):
            return [
                f"{self.name}: the checkpoint holds the sums of rank {of_rank} of {of_size} alone; this is rank {rank} of "
                f"{size}. To load it anywhere, write it on all processes after persistent(True, synced=True), or inside "
                "`with metric.sync_context():` (or the collection's)"
            ]
        takes = rank == 0 or not for_all
        self._set_state((saved.detach().clone() if takes else torch.zeros_like(saved)).to(self.state.device))
        self.was_restored_alone = size == 1
        self._computed = None
        self._update_count = max(1, self._update_count)
        return []
