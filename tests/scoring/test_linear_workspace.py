"""The logits of hidden states in one workspace, which is halved when memory runs out; autocast, devices and options."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.backends import assert_same
from torch.nn import functional as F

from xent_metrics import score_hidden_states, score_tokens
from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring.linear import LMHead, Workspace
from xent_metrics.scoring.scores import ExtraScore
from xent_metrics.testing import no_host_sync

HIDDEN, HEAD, BIAS, TARGET = torch.randn(100, 5), torch.randn(7, 5), torch.randn(7), torch.arange(100) % 7


def out_of_memory(largest: int, seen: list[int]):
    """`LMHead.logits` on a device that has room for `largest` rows."""
    logits = LMHead.logits

    def limited(self, hidden, out=None):
        seen.append(len(hidden))
        if len(hidden) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits(self, hidden, out)

    return limited


def test_out_of_memory_halves_the_rows_and_loses_nothing(monkeypatch):
    states, head = HIDDEN.bfloat16(), HEAD.bfloat16()  # whole rows, not blocks of the vocabulary
    expected, seen = score_hidden_states(states, head, TARGET), []
    monkeypatch.setattr(LMHead, "logits", out_of_memory(30, seen))
    with pytest.warns(UserWarning, match="out of memory for the logits of 100 rows; going on with 50") as caught:
        scores = score_hidden_states(states, head, TARGET)
    assert seen == [100, 50, 25, 25, 25, 25]
    assert len(caught) == 1
    assert_same(scores, expected)


def test_out_of_memory_while_the_logits_are_scored_scores_these_rows_again(monkeypatch):
    states, head, rooms = HIDDEN.bfloat16(), HEAD.bfloat16(), [False, True, False]
    expected, seen = score_hidden_states(states, head, TARGET), []

    def largest(logits, index):
        seen.append(len(logits))
        if not rooms.pop(0) if rooms else False:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits.amax(-1)

    with pytest.warns(UserWarning, match="out of memory"):
        scores = score_hidden_states(states, head, TARGET, extra_scores={"m": ExtraScore(largest, of="logits")})
    assert seen == [100, 50, 50, 25, 25]
    assert torch.equal(scores.extra_scores["m"], F.linear(states, head).float().amax(-1))
    assert torch.equal(scores.nll, expected.nll)


def test_out_of_memory_with_few_rows_is_raised(monkeypatch):
    seen = []
    monkeypatch.setattr(LMHead, "logits", out_of_memory(15, seen))
    with pytest.warns(UserWarning, match="out of memory"), pytest.raises(torch.OutOfMemoryError):
        score_hidden_states(HIDDEN.bfloat16(), HEAD.bfloat16(), TARGET)
    assert seen == [100, 50, 25, 16]


@pytest.mark.parametrize("head", [LMHead(HEAD), LMHead(HEAD, BIAS), LMHead(HEAD, BIAS, scale=0.5, softcap=3.0)])
def test_rows_share_the_workspace(head):
    workspace, seen = Workspace(head), []
    workspace.rows, workspace.reuse = 30, True  # as on a GPU
    workspace.for_each(HIDDEN, lambda logits: seen.append((logits.data_ptr(), logits.clone())))
    assert len({address for address, _ in seen}) == 1
    assert [len(logits) for _, logits in seen] == [30, 30, 30, 10]
    expected = F.linear(HIDDEN, HEAD, head.bias)
    if head.softcap:
        expected = 3.0 * torch.tanh(0.5 * expected / 3.0)
    torch.testing.assert_close(torch.cat([logits for _, logits in seen]), expected)


def test_a_bias_of_rounded_products_rounds_once():
    workspace, seen = Workspace(LMHead(HEAD.bfloat16(), BIAS.bfloat16())), []
    workspace.reuse = True
    workspace.for_each(HIDDEN.bfloat16(), lambda logits: seen.append(logits.clone()))
    assert torch.equal(seen[0], F.linear(HIDDEN.bfloat16(), HEAD.bfloat16(), BIAS.bfloat16()))


def test_extra_scores_may_keep_the_logits():
    with no_host_sync() as device:
        kept = []
        extra = ExtraScore(lambda logits, index: kept.append(logits) or logits[:, 0], of="logits")
        hidden, head = torch.empty(3000, 4, device=device), torch.empty(128_256, 4, device=device)
        score_hidden_states(hidden, head, torch.empty(3000, device=device, dtype=torch.long), extra_scores={"x": extra})
    storages = [logits.untyped_storage() for logits in kept]
    assert len({id(storage) for storage in storages}) == 3  # one for each product, not one in all


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "256 MiB"])
def test_other_workspaces_say_what_is_expected(value):
    with pytest.raises(InvalidInputError, match=f"workspace_bytes is a positive number of bytes; got {value!r}"):
        score_hidden_states(HIDDEN, HEAD, TARGET, workspace_bytes=value)


def test_a_cpu_needs_no_workspace():
    expected = score_hidden_states(HIDDEN.bfloat16(), HEAD.bfloat16(), TARGET)
    assert_same(score_hidden_states(HIDDEN.bfloat16(), HEAD.bfloat16(), TARGET, workspace_bytes=1), expected)


@pytest.mark.parametrize("options", [{}, {"bias": BIAS}, {"label_smoothing": 0.1}])
def test_autocast_leaves_products_in_the_dtype_of_their_factors(options):
    expected = score_hidden_states(HIDDEN, HEAD, TARGET, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = score_hidden_states(HIDDEN, HEAD, TARGET, **options)
        assert torch.is_autocast_enabled("cpu")
        product = score_tokens(HIDDEN @ HEAD.T, TARGET)
    assert_same(scores, expected)
    assert not torch.equal(product.nll, expected.nll)  # the caller's own product is in bfloat16


def test_extra_scores_multiply_in_their_own_dtype():
    table = torch.randn(7, 3)
    wanted = {"mean": ExtraScore(lambda log_prob, index: log_prob.exp() @ table, shape=(3,))}
    expected = score_tokens(HIDDEN @ HEAD.T, TARGET, extra_scores=wanted)
    logits = HIDDEN @ HEAD.T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(score_tokens(logits, TARGET, extra_scores=wanted), expected)


@pytest.mark.parametrize("name", ["lm_head_weight", "bias"])
def test_tensors_on_different_devices_are_named_before_anything_is_computed(name, monkeypatch):
    monkeypatch.setattr(LMHead, "logits", None)
    given = {"lm_head_weight": HEAD, "bias": BIAS}
    given[name] = given[name].to("meta")
    with pytest.raises(InvalidInputError, match=f"expected {name} on the device of hidden_states, cpu; got meta"):
        score_hidden_states(HIDDEN, given["lm_head_weight"], TARGET, bias=given["bias"])


def test_ordinary_calls_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_hidden_states(HIDDEN, HEAD, TARGET, workspace_bytes=2**20)
