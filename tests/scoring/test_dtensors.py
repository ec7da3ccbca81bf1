"""The classes of a process are those that torch places there. What processes do together is in test_sharded.py."""

from __future__ import annotations

import pytest
import torch
from support.distributed import fake_ranks
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring.dtensors import Layout, whole


def distributed(tensor, mesh, placements):
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)  # each process has the whole tensor


@pytest.mark.parametrize("vocab_size", [1, 2, 5, 8, 13])
@pytest.mark.parametrize("rank", [0, 3, 5])
def test_classes_are_the_local_ones(vocab_size, rank):
    with fake_ranks(rank, 6):
        mesh = DeviceMesh("cpu", torch.arange(6).reshape(2, 3))
        for placements in (
            [Shard(1), Shard(1)],
            [Replicate(), Shard(1)],
            [Shard(0), Shard(1)],
            [Shard(0), Replicate()],
        ):
            logits = distributed(torch.arange(vocab_size).expand(4, -1).contiguous(), mesh, placements)
            layout = Layout(logits, class_dim=1)
            classes = layout.classes
            assert logits.to_local()[0].tolist() == list(range(classes.start, classes.stop))
            assert layout.vocab_size == vocab_size


def test_replicas_are_the_ranks_with_the_same_rows():
    with fake_ranks(4, 6):
        mesh = DeviceMesh("cpu", torch.arange(6).reshape(2, 3))
        logits = torch.zeros(4, 6)
        for placements, ranks in {
            (Shard(0), Shard(1)): (3, 4, 5),
            (Shard(1), Shard(0)): (1, 4),
            (Shard(1), Shard(1)): (0, 1, 2, 3, 4, 5),
            (Shard(0), Shard(0)): (),
        }.items():
            assert Layout(distributed(logits, mesh, placements), class_dim=1).replicas() == ranks


def test_a_process_outside_of_the_mesh_is_an_error():
    with fake_ranks(0, 3):
        logits = distributed(torch.zeros(2, 4), DeviceMesh("cpu", [1, 2]), [Shard(1)])
        with pytest.raises(InvalidInputError, match="this process is not in the DTensor's mesh"):
            Layout(logits, class_dim=1)


def test_a_plain_vector_is_whole():
    assert whole([1, 2, 3]).tolist() == [1, 2, 3]


def test_rows_of_any_dimension_stay_where_they_are_unless_the_classes_are_there():
    with fake_ranks(4, 6):
        mesh = DeviceMesh("cpu", torch.arange(6).reshape(2, 3))
        head = distributed(torch.zeros(6, 5), mesh, [Replicate(), Shard(0)])  # classes on the second mesh dimension
        hidden = torch.zeros(4, 6, 5)
        for placement, kept in {Shard(0): Shard(0), Shard(1): Shard(1), Shard(2): Replicate()}.items():
            layout = Layout(head, class_dim=0)
            layout.keep_rows(distributed(hidden, mesh, [placement, Replicate()]))
            assert (layout.rows, layout.gathered) == ([kept, Replicate()], [])
            layout.keep_rows(distributed(hidden, mesh, [Replicate(), placement]))
            assert (layout.rows, layout.gathered) == ([Replicate(), Replicate()], [1] if kept == placement else [])
