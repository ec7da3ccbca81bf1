"""Scores come back from a device as one copy, with every number as it was."""

from __future__ import annotations

import pytest
import torch

from xent_metrics import TokenScores, get_metric, score_tokens
from xent_metrics.hosts.lm_eval.models import transfer
from xent_metrics.hosts.lm_eval.models.transfer import pack, send, start_copy, unpack
from xent_metrics.testing import no_host_sync


def scores(device="cpu"):
    logits = torch.arange(40.0, device=device).reshape(5, 8).sin()
    target = torch.arange(5, device=device)
    extra = get_metric("mean_reciprocal_rank").extra_scores()
    table = torch.arange(8, device=device)
    return score_tokens(logits, target, token_bytes=table, extra_scores=extra)


def test_every_number_comes_back_as_it_was():
    tensors = [
        torch.tensor([True, False, True]), torch.arange(3), torch.tensor([1.5, torch.nan, -torch.inf]),
        torch.randn(3, 2, 5, dtype=torch.float64), torch.zeros(0), torch.ones(3, dtype=torch.bfloat16),
        torch.randn(4, 3).T[::2], torch.tensor(7),
    ]  # fmt: skip
    packed = pack(tensors)
    assert packed.nbytes == sum(tensor.nbytes for tensor in tensors)
    for found, wanted in zip(unpack(packed, tensors), tensors, strict=True):
        assert found.dtype == wanted.dtype
        assert torch.equal(found.nan_to_num(), wanted.nan_to_num())


def test_scores_on_the_cpu_are_not_copied():
    own = scores()
    assert start_copy(own)() is own


def test_scores_of_a_device_come_as_one_copy(monkeypatch):
    """On a stand-in: the scores say that they are elsewhere, and the copy of their bytes is seen."""
    own, copies = scores(), []

    def start(packed):
        copies.append(packed)
        return packed.clone

    monkeypatch.setattr(transfer, "_start", start)
    monkeypatch.setattr(TokenScores, "device", torch.device("cuda"))
    arrive = start_copy(own)
    assert len(copies) == 1
    found = arrive()
    assert found.fields().keys() == own.fields().keys()
    assert found.extra_scores.keys() == own.extra_scores.keys() == {"target_rank"}
    for name, value in (found.fields() | found.extra_scores).items():
        wanted = getattr(own, name, None)
        wanted = own.extra_scores[name] if wanted is None else wanted
        assert value.dtype == wanted.dtype
        assert torch.equal(value, wanted)
    assert (found.vocab_size, found.row_kind) == (8, "token")


def test_nothing_waits_while_the_copy_is_made():
    copies = []
    with no_host_sync() as device, pytest.MonkeyPatch.context() as patched:
        patched.setattr(transfer, "_start", lambda packed: copies.append(packed))
        start_copy(scores(device))
        assert [packed.device.type for packed in copies] == ["cuda"]


def test_numbers_go_to_the_device_as_int64_and_tensors_as_they_are():
    assert send([[1, 2]], torch.device("cpu")).dtype == torch.int64
    assert send([], torch.device("cpu")).dtype == torch.int64
    given = torch.ones(2, dtype=torch.int32)
    assert send(given, torch.device("cpu")) is given


def test_what_goes_to_cuda_is_pinned_and_not_waited_for(monkeypatch):
    seen = []

    class Host(torch.Tensor):
        def pin_memory(self):
            seen.append("pinned")
            return self

        def to(self, *where, **how):
            seen.append((*where, how))
            return self

    send(torch.ones(2).as_subclass(Host), torch.device("cuda"))
    assert seen == ["pinned", (torch.device("cuda"), {"non_blocking": True})]
