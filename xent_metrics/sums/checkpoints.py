"""Checkpoints of packed sums: they say whose sums they hold, so that loading one on every process counts it once.

`torchmetrics.Metric`'s private `_persistent`, `_computed`, `_update_count` and `_is_synced` are used as read in
torchmetrics 1.9.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from xent_metrics.sums.groups import rank_in
from xent_metrics.sums.packed import PackedMetric

__all__ = ["CheckpointedMetric"]

#: The checkpoint's entry beside the sums: whether they were synced, and by which rank of how many they were written.
_ORIGIN = "sums_origin"


class CheckpointedMetric(PackedMetric):
    """A `PackedMetric` with checkpoints that know whose sums they hold.

    After `persistent(True)`, `state_dict` holds the sums and whose they are. Written inside `sync_context`,
    or by a single process, they may be loaded by any number of processes, each calling `load_state_dict`, and count
    once: rank 0 of the metric's process group takes them, the others start from zero. Written by one of many processes
    without a sync, they load only on that rank of as many. The process group must exist before the load.

    After `persistent(True, synced=True)` every `state_dict` syncs: for checkpoints that all processes make together, as
    Lightning's are (DDP, FSDP2). A `state_dict` on rank 0 alone would then wait for the others.
    """

    sums_origin: ClassVar[None] = None  # torch.distributed.checkpoint looks for an attribute of each entry's name
    _saves_synced = False
    _persistent: dict[str, bool]

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
            entries[prefix + _ORIGIN] = torch.tensor(
                [int(self._is_synced), 0 if self._is_synced else rank, size], device="cpu"
            )
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
        if self._is_synced:
            return [f"{self.name} holds the sums of all processes, which end with the sync; unsync it first"]
        for entry, value, shape in ((self._state_name, saved, tuple(self.state.shape)), (_ORIGIN, origin, (3,))):
            if value is not None and not _is_integers(value, shape):
                found = _described(value)
                return [f"{self.name}: the checkpoint holds {found} as {entry}; expected int64 of shape {shape}"]
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


def _is_integers(value: Any, shape: Sequence[int]) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int64 and value.shape == tuple(shape)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return f"a value of type {type(value).__name__}"
