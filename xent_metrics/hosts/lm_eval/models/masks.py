"""Which ids of a batch of trees attend to which: `Trees`, as a dense mask or as a `BlockMask` for flex_attention.

Columns of keys are those of the prefix followed by those of the row. Branches are added depth first (packing.py), so one
number per key, its end, says who sees it: the queries from its own column up to its end. The masks are made of it on the
device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["Trees"]

_BLOCK = 128  # columns of a block, as in flex_attention's own masks


@dataclass(frozen=True)
class Trees:
    """Rows that branch, after a prefix that all their ids see.

    Attributes:
        ends: ``(B, K)`` the first column of each key's row that doesn't see the key.
        depths: ``(B, K)`` the position of each key in its own window.
        prefix: the columns of the prefix; the other K − prefix columns are the queries.
    """

    ends: Tensor
    depths: Tensor
    prefix: int

    def sees(self, window: int | None = None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The mask as flex_attention asks for it: by batch, head, query and key.

        Args:
            window: how many positions a key is seen for, the query's own included; by default any number.
        """

        def see(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            column = query + self.prefix
            seen = (key <= column) & (column < self.ends[batch, key])
            if window is None:
                return seen
            return seen & (self.depths[batch, column] - self.depths[batch, key] < window)

        return see

    def dense(self, window: int | None = None) -> Tensor:
        """The mask ``(B, 1, S, K)``, bool."""
        rows, keys = self.ends.shape
        device = self.ends.device
        batch = torch.arange(rows, device=device)[:, None, None]
        query = torch.arange(keys - self.prefix, device=device)[:, None]
        return self.sees(window)(batch, batch, query, torch.arange(keys, device=device))[:, None]

    def blocks(self, window: int | None = None) -> Any:
        """The mask as a `BlockMask`, whose unseen blocks are skipped.

        Which blocks these are follows from the first and the last end in each block of keys, without a dense mask.
        """
        from torch.nn.attention.flex_attention import BlockMask  # only this attention needs it

        seen, full = self._blocks()
        if window is not None:
            full = torch.zeros_like(full)
        return BlockMask.from_kv_blocks(
            *_ordered(seen & ~full),
            *_ordered(full),
            BLOCK_SIZE=_BLOCK,
            mask_mod=self.sees(window),
            seq_lengths=(self.ends.shape[1] - self.prefix, self.ends.shape[1]),
        )

    def _blocks(self) -> tuple[Tensor, Tensor]:
        """Whether some query of a block may see some key of another, and whether all see all, ``(B, queries, keys)``."""
        keys = self.ends.shape[1]
        missing = -keys % _BLOCK

        def starts(columns: int) -> Tensor:
            return torch.arange(0, columns, _BLOCK, device=self.ends.device)

        query, key = (self.prefix + starts(keys - self.prefix))[:, None], starts(keys)
        ends = pad(self.ends, (0, missing)).reshape(len(self.ends), 1, -1, _BLOCK)
        last, first = ends.amax(-1), ends.amin(-1)  # the first is 0 where keys are missing
        seen = (key < query + _BLOCK) & (query < last)
        full = (key + _BLOCK - 1 <= query) & (query + _BLOCK - 1 < first)
        return seen, full


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which they are, followed by the others."""
    counts = blocks.sum(-1, dtype=torch.int32)[:, None]
    order = torch.argsort(blocks.int(), dim=-1, descending=True, stable=True)
    return counts, order.int().contiguous()[:, None]
