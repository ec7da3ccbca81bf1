"""What lm-eval asks of a model in several processes, by torch.distributed if that is initialised.

Who syncs: lm-eval, which distributes documents by rank and gathers the results on rank 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Ranks"]


class Ranks:
    """This process's rank in `torch.distributed`, or rank 0 of 1."""

    @property
    def rank(self) -> int:
        """This process's rank; 0 without a process group."""
        return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0

    @property
    def world_size(self) -> int:
        """The number of processes; 1 without a process group."""
        return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, which have one shape, concatenated."""
        if self.world_size == 1:
            return tensor
        gathered = [torch.empty_like(tensor) for _ in range(self.world_size)]
        torch.distributed.all_gather(gathered, tensor)
        return torch.cat([part.reshape(-1) for part in gathered])

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all ranks on rank `dst`, None on the others."""
        if self.world_size == 1:
            return [obj]
        gathered: list[Any] | None = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, gathered, dst=dst)
        return gathered

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            torch.distributed.barrier()
