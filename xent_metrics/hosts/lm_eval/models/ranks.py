"""What lm-eval asks of a model that runs in several processes, answered by torch.distributed when it is initialised.

lm-eval deals documents out by rank and gathers what came of them on rank 0; the model syncs nothing by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Ranks"]


class Ranks:
    """Rank 0 of 1, or this process' place among those of `torch.distributed`."""

    @property
    def rank(self) -> int:
        return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0

    @property
    def world_size(self) -> int:
        return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1

    def all_gather(self, tensor: Tensor) -> Tensor:
        """All ranks' tensors of one shape, joined."""
        if self.world_size == 1:
            return tensor
        gathered = [torch.empty_like(tensor) for _ in range(self.world_size)]
        torch.distributed.all_gather(gathered, tensor)
        return torch.cat([part.reshape(-1) for part in gathered])

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """All ranks' objects on `dst`, None elsewhere."""
        if self.world_size == 1:
            return [obj]
        gathered: list[Any] | None = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, gathered, dst=dst)
        return gathered

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            torch.distributed.barrier()
