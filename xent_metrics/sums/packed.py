"""PackedMetric: a torchmetrics Metric whose whole state is one int64 tensor, synced by one all_reduce.

It also says in its checkpoints whose sums they hold, so that loading one on every process counts it once.
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
    """A torchmetrics Metric whose whole state is one int64 tensor of exact sums, ``(rows, 8)``.

    Checkpoints: `persistent(True)`, then `state_dict` holds the sums and whose they are. Written inside `sync_context`, or
    by a single process, they are loaded by any number of processes, each giving it to `load_state_dict`, and count once:
    rank 0 of the metric's process group takes them, the others start from zero. Written by one of many without a sync,
    they load on that rank of as many. The process group must be there before the load.

    `persistent(True, synced=True)` syncs in every `state_dict`: for checkpoints that all processes make together, as
    Lightning's are (DDP, FSDP2). A `state_dict` on rank 0 alone would wait for the others then.
    """

    name: ClassVar[str]
    _state_name: str
    _shared_sync: SharedSync | None = None
    _in_compute = False
    _in_forward = False
    _restored_alone = False
    _saves_synced = False
    sums_origin: ClassVar[None] = None  # torch.distributed.checkpoint looks for an attribute of each entry's name

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

    def _counts_here(self, replicas: tuple[int, ...]) -> bool:
        """Whether this process adds rows that `replicas` hold too: the first of those that are synced with it does."""
        if not (self.sync_on_compute or self.dist_sync_on_step) or not self.distributed_available_fn():
            return True
        ranks, rank = dist.get_process_group_ranks(self.process_group or dist.group.WORLD), dist.get_rank()
        return rank not in ranks or rank == next(replica for replica in replicas if replica in ranks)

    def _syncs_with(self, other: PackedMetric) -> bool:
        return self.sync_on_compute and self.dist_sync_fn is None and self.process_group is other.process_group

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any = None) -> None:
        """Add up all processes' states in one all_reduce (or through the caller's own `dist_sync_fn`)."""
        if dist_sync_fn is not gather_all_tensors:
            super()._sync_dist(dist_sync_fn, process_group)
        elif self._shared_sync is not None and self._in_compute and not self._in_forward:
            self._set_state(self._shared_sync.total(self))
        else:
            self._set_state(all_reduce_states([self], process_group or self.process_group)[0])

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
        """The state itself: it is replaced, never changed in place, and `SharedSync` knows it by identity."""
        return {self._state_name: self.state}

    def reset(self) -> None:
        """Back to no data."""
        super().reset()
        self._restored_alone = False

    # Copies.

    def __getstate__(self) -> dict[str, Any]:
        """A copy stands alone; a copy of a collection brings its members together again."""
        return {name: value for name, value in super().__getstate__().items() if name != "_shared_sync"}

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedMetric:
        """A copy in the same process group, which can't be copied itself."""
        memo[id(self.process_group)] = self.process_group
        other = memo[id(self)] = type(self).__new__(type(self))
        other.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return other

    # Checkpoints.

    def persistent(self, mode: bool = False, *, synced: bool = False) -> None:
        """Whether `state_dict` holds the sums, and whether it syncs them first: every process must call it then."""
        super().persistent(mode)
        self._saves_synced = synced

    def _syncs_to_save(self) -> bool:
        """The same on all processes: it asks for nothing but what they do together."""
        return self._saves_synced and self._persistent[self._state_name] and not self._is_synced

    def state_dict(  # type: ignore[override]  # torchmetrics' signature
        self, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """The sums, where `persistent`, and beside them whether they are synced and whose they are."""
        with self.sync_context(should_sync=self._syncs_to_save()):
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
        """Take a checkpoint's sums, or what is wrong with them."""
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
        self._restored_alone = size == 1
        self._computed = None
        self._update_count = max(1, self._update_count)
        return []
