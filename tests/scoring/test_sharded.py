"""Logits and heads that are sharded over the vocabulary score as whole ones do, and rows count once. Real processes, gloo."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support import sharded_jobs as jobs
from support.distributed import fake_ranks, run
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from xent_metrics import score_tokens
from xent_metrics.scoring import dtensors
from xent_metrics.testing import no_host_sync


@pytest.mark.parametrize(("size", "sizes"), [(2, [1, 2, 7, 1030]), (3, [2, 4, 64, 3001])])
def test_logits_over_the_vocabulary(size, sizes):
    assert run(size, jobs.vocabulary, sizes) == [len(sizes) * 3 * 2 * 4] * size


@pytest.mark.parametrize("size", [2, 3])
def test_hidden_states_and_head(size):
    assert run(size, jobs.hidden) == [4 * 2 * 2 * 2] * size


@pytest.mark.parametrize("size", [2, 3])
def test_sharded_rows_need_nothing_but_the_final_sum(size):
    alone = jobs.rows_alone()
    for found in run(size, jobs.rows):
        assert found.pop("plain") == alone[0]
        assert found == {name: {"states": alone, "calls": 0} for name in ("batch", "sequence", "held by all")}


def test_each_row_of_a_grid_counts_once_in_every_group():
    answers = run(4, jobs.grid)
    means = [answers[0]["mean"], answers[2]["mean"]]
    for rank, found in enumerate(answers):
        mean, both = pytest.approx(means[rank // 2], rel=1e-6), pytest.approx(sum(means) / 2, rel=1e-6)
        assert found["replicas"] == ((0, 1) if rank < 2 else (2, 3))
        assert found["nested"] == (0, 1, 2, 3)
        assert found["batch"] == {"world": mean, "data": mean, "none": mean, "tensor": mean, "on step": both}
        assert found["total"] == {"world": both, "data": both, "none": mean, "tensor": mean, "on step": both}
        assert found["counts"]["counted"] == 12


def test_a_call_makes_three_small_reductions():
    three = {"c10d_functional.all_reduce": 3}
    for found in run(2, jobs.cost):
        assert found == {
            "logits": three,
            "hidden states": three,
            "pending sum": three | {"c10d_functional.reduce_scatter_tensor": 1},
            "no rows": {},
        }


def test_ambiguous_inputs_say_how_to_resolve_them():
    for found in run(2, jobs.errors):
        assert "If it is the same on every process (tensor parallel), pass DTensor.from_local" in found["plain states"]
        assert (
            "the targets or weights are DTensors but the logits are not; pass target.to_local()"
            in found["plain logits"]
        )
        assert "entropy need whole rows of logits, but these are sharded" in found["extra_scores"]
        assert "expected one target per row of logits, shape (2,); got (4,)" in found["all targets"]
        assert "expected all DTensors on one mesh" in found["two meshes"]
        assert "is on the smaller mesh after model.unshard()" in found["two meshes"]
        gathered = found["gathered rows"]
        assert "sharded over rows on mesh dimension 'data', which also shards the head's vocabulary" in gathered
        assert "to rows of shape (4,); got targets or weights of shape (2,)" in gathered
        assert "call model.unshard() first" in gathered


def test_scoring_a_shard_never_waits_for_the_device(monkeypatch):
    monkeypatch.setattr(dtensors, "_ranks_at", lambda mesh, place: (0, 1))  # reads the mesh, which is on the host
    with fake_ranks(1, 2):
        mesh = DeviceMesh("meta", [0, 1])
        with no_host_sync():
            shard = DTensor.from_local(torch.empty(6, 50, device="meta"), mesh, [Shard(1)])
            target = torch.empty(6, dtype=torch.long, device="meta")
            scores = score_tokens(shard, target, label_smoothing=0.1, class_weight=torch.empty(100, device="meta"))
            assert {value.device.type for value in scores.fields().values()} == {"meta"}


def test_scoring_a_shard_is_one_graph():
    def score(logits, target):
        scores = score_tokens(logits, target, label_smoothing=0.1)
        return scores.nll, scores.confidence, scores.correct, scores.loss

    with fake_ranks(1, 2):
        mesh = DeviceMesh("cpu", [0, 1])
        shard = DTensor.from_local(torch.randn(6, 50), mesh, [Shard(1)])
        target = torch.randint(50, 100, (6,))
        for got, expected in zip(
            torch.compile(score, fullgraph=True, backend="aot_eager")(shard, target), score(shard, target), strict=True
        ):
            torch.testing.assert_close(got, expected)


def test_plain_tensors_do_not_import_dtensors():
    code = """
import sys, torch, torchmetrics
before = set(sys.modules)  # older releases of theirs import it themselves
import xent_metrics
xent_metrics.score_tokens(torch.zeros(2, 3), torch.tensor([0, 1]))
xent_metrics.score_hidden_states(torch.zeros(2, 3), torch.zeros(4, 3), torch.tensor([0, 1]))
print(sorted({"torch.distributed.tensor", "xent_metrics.scoring.sharded"} & sys.modules.keys() - before))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
