"""The part of a DTensor that this process holds: which classes, which rows, and which processes share the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring.inputs import as_tensor

__all__ = ["Layout", "whole"]


class Layout:
    """How classes and rows are distributed over the processes of a mesh.

    Args:
        tensor: the logits, or the weight of the `lm_head`.
        class_dim: its dimension of classes.

    Attributes:
        classes: the classes of this process.
        class_mesh_dims: the mesh dimensions over which classes are sharded.
        rows: how rows are placed on each mesh dimension.
    """

    def __init__(self, tensor: DTensor, class_dim: int) -> None:
        self.mesh = tensor.device_mesh
        coordinate = self.mesh.get_coordinate()
        if coordinate is None:
            raise InvalidInputError(
                f"this process is not in the DTensor's mesh {self.mesh}; score on the processes that are"
            )
        self.coordinate = coordinate
        self.vocab_size = tensor.shape[class_dim]
        self.rows: list[Placement] = [p if _shards_rows(p, class_dim) else Replicate() for p in tensor.placements]
        # A pending sum, or a head that is sharded over H, becomes a shard of the vocabulary: a scatter, not a gather.
        self.placements = [
            p if _shards_rows(p, class_dim) or p.is_replicate() else Shard(class_dim) for p in tensor.placements
        ]
        self.gathered: list[int] = []  # mesh dimensions over which `keep_rows` gathers
        self.class_mesh_dims = [dim for dim, p in enumerate(self.placements) if p.is_shard(class_dim)]
        self.classes = self._slice()

    def _slice(self) -> slice:
        """The classes of this process. Each mesh dimension cuts the part that the previous ones left, as `torch.chunk`."""
        start, size = 0, self.vocab_size
        for dim in self.class_mesh_dims:
            chunk = -(-size // self.mesh.size(dim))
            skipped = min(size, self.coordinate[dim] * chunk)
            start, size = start + skipped, min(chunk, size - skipped)
        return slice(start, start + size)

    def own_classes(self, tensor: DTensor) -> Tensor:
        """The local part of the tensor that this layout was made of."""
        return tensor.redistribute(placements=self.placements).to_local().detach()

    def keep_rows(self, hidden_states: DTensor) -> None:
        """Leave the rows of `hidden_states` in place, except on mesh dimensions that shard the classes."""
        row_dims = hidden_states.ndim - 1
        self.gathered = [dim for dim in self.class_mesh_dims if _shards_rows(hidden_states.placements[dim], row_dims)]
        self.rows = [
            p if _shards_rows(p, row_dims) and dim not in self.class_mesh_dims else Replicate()
            for dim, p in enumerate(hidden_states.placements)
        ]

    def own_rows(self, rows: Any) -> Tensor:
        """The local rows of a DTensor on this mesh; a plain tensor already is the local rows."""
        if not isinstance(rows, DTensor):
            return as_tensor(rows)
        if rows.device_mesh != self.mesh:
            raise InvalidInputError(
                f"expected all DTensors on one mesh; got {self.mesh} and {rows.device_mesh}. A weight that FSDP shards in "
                "addition to tensor parallelism is on the smaller mesh after model.unshard()"
            )
        return rows.redistribute(placements=self.rows).to_local().detach()

    def check_rows(self, rows: torch.Size, given: Tensor) -> None:
        """Raise if hidden states are gathered over rows, but targets or weights aren't given for all these rows."""
        if not self.gathered or given.shape[: len(rows)] == rows:
            return
        names = self.mesh.mesh_dim_names
        dims = ", ".join(repr(names[dim]) if names else str(dim) for dim in self.gathered)
        raise InvalidInputError(
            f"hidden states are sharded over rows on mesh dimension {dims}, which also shards the head's vocabulary, so "
            f"they are gathered to rows of shape {tuple(rows)}; got targets or weights of shape {tuple(given.shape)}. Pass "
            "those of all these rows, or DTensors placed like the hidden states. If FSDP shards the head on that "
            "dimension, call model.unshard() first, and score with hidden states and head on the tensor parallel mesh"
        )

    def replicas(self) -> tuple[int, ...]:
        """The global ranks that hold the same rows."""
        place = tuple(i if p.is_shard() else None for i, p in zip(self.coordinate, self.rows, strict=True))
        ranks: tuple[int, ...] = _ranks_at(self.mesh, place)
        return ranks

    def reduce(self, column: Tensor, op: str) -> Tensor:
        """`column` reduced by "sum", "max" or "min" over the processes that hold the rows' other classes."""
        ways = [Partial(op) if dim in self.class_mesh_dims else Replicate() for dim in range(self.mesh.ndim)]
        return DTensor.from_local(column, self.mesh, ways, run_check=False).full_tensor()


def _shards_rows(placement: Placement, row_dims: int) -> bool:
    return isinstance(placement, Shard) and placement.dim < row_dims


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _ranks_at(mesh: DeviceMesh, place: tuple[int | None, ...]) -> tuple[int, ...]:
    """The ranks at this place in the mesh, None being any coordinate; empty for a single rank."""
    index = tuple(slice(None) if i is None else i for i in place)
    ranks = np.sort(mesh.mesh.numpy()[index], axis=None)  # in NumPy, because new tensors may be fake here
    return tuple(map(int, ranks)) if ranks.size > 1 else ()


def whole(vector: Any) -> Tensor:
    """The full tensor of a vector that may be a DTensor."""
    return vector.full_tensor() if isinstance(vector, DTensor) else as_tensor(vector)
