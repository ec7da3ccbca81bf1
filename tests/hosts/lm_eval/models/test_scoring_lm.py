"""Requests, windows, caches and results, as xent-hf and xent-torch share them."""

from __future__ import annotations

import io
import logging
from functools import partial

import pytest
import torch
from lm_eval.api.model import CachingLM
from support.byte_model import TEXTS, ByteNet, Watched, pairs
from support.byte_model import rolling as rolling_requests
from support.hf_model import (
    TEXT,
    choices,
    multiple_choice,
    requests,
    rolling,
    stock,
    tiny_model,
    tiny_tokenizer,
)

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval import TorchLM, XentHFLM
from xent_metrics.hosts.lm_eval.models import hf_lm, progress
from xent_metrics.hosts.lm_eval.models.results import ScoredRolling

PAIRS = multiple_choice()


def test_a_rolled_text_has_every_token_in_order(lm, tokenizer):
    [result] = rolling(lm, TEXT)
    ids = tokenizer.encode(TEXT)
    assert len(ids) > lm.max_length  # several windows
    assert isinstance(result, ScoredRolling)
    assert result.scores.target.tolist() == ids
    assert int(result.scores.num_bytes.sum()) == len(TEXT.encode())
    assert result == pytest.approx(-float(result.scores.nll.double().sum()), rel=1e-12)


def test_an_empty_text_costs_nothing(lm):
    empty, other = rolling(lm, "", TEXT[:20])
    assert empty == 0.0
    assert len(empty.scores) == 0
    assert other < 0


def test_the_order_of_requests_only_orders_the_answers():
    lm = TorchLM(ByteNet(), batch_size=3)
    forward = lm.loglikelihood_rolling(rolling_requests(*TEXTS))
    backward = lm.loglikelihood_rolling(rolling_requests(*reversed(TEXTS)))
    assert forward == backward[::-1]
    assert forward[3] == 0.0


def test_nothing_to_do_is_nothing(lm):
    assert lm.loglikelihood([]) == []
    assert lm.loglikelihood_rolling([]) == []


@pytest.mark.parametrize("stride", [1, 7, 24])
def test_stride_scores_each_token_once_with_more_context(build, model, tokenizer, stride):
    lm = build(max_length=24, stride=stride)
    [result] = rolling(lm, TEXT[:160])
    ids = tokenizer.encode(TEXT[:160])
    whole = [0, *ids]
    expected, start, end = [], 0, min(24, len(ids))
    while start < len(ids):  # ids start … end−1 are new; each is predicted within the last 24 inputs
        inputs = whole[max(0, end - 24) : end]
        log_prob = model(torch.tensor([inputs])).logits[0].log_softmax(-1)
        fresh = torch.tensor(ids[start:end])
        expected.append(-log_prob[-len(fresh) :].gather(-1, fresh[:, None]).squeeze(-1))
        start, end = end, min(end + stride, len(ids))
    torch.testing.assert_close(result.scores.nll, torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert result.scores.target.tolist() == ids


def test_without_stride_windows_are_lm_evals(build, model, tokenizer):
    theirs = rolling(stock(model, tokenizer, max_length=24), TEXT)
    assert rolling(build(max_length=24), TEXT) == pytest.approx(theirs, rel=1e-6)
    assert rolling(build(max_length=24, stride=24), TEXT) == pytest.approx(theirs, rel=1e-6)


# Caches.


def test_the_cache_keeps_scores(build, tmp_path, monkeypatch):
    lm = build()
    cached = CachingLM(lm, str(tmp_path / "cache.db"))
    pairs = requests("loglikelihood", PAIRS)
    texts = requests("loglikelihood_rolling", [(TEXT,), ("",)])
    first = cached.loglikelihood(pairs), cached.loglikelihood_rolling(texts)

    def refuse(*args, **kwargs):
        raise AssertionError("the model ran")

    monkeypatch.setattr(lm.forward, "states", refuse)
    again = cached.loglikelihood(pairs), cached.loglikelihood_rolling(texts)
    assert again == first
    for one, two in zip(first[0] + first[1], again[0] + again[1], strict=True):
        assert torch.equal(one.scores.nll, two.scores.nll)


def test_what_is_done_is_cached_before_all_is_done(build, tmp_path, monkeypatch):
    lm = build(batch_size=1)
    monkeypatch.setattr(hf_lm, "_CPU_TOKENS", 1)
    cached = CachingLM(lm, str(tmp_path / "cache.db"))
    states, calls = lm.forward.states, []

    def fails_later(rows, cache=None):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return states(rows, cache)

    monkeypatch.setattr(lm.forward, "states", fails_later)
    with pytest.raises(KeyboardInterrupt):
        cached.loglikelihood_rolling(requests("loglikelihood_rolling", [(TEXT,), (TEXT[:90],), (TEXT[:30],), ("a",)]))
    assert len(cached.dbdict) > 0


@pytest.mark.parametrize("kind", ["loglikelihood", "loglikelihood_rolling"])
def test_a_cache_without_tokens_is_refused_where_they_are_asked_for(build, tmp_path, kind):
    path = str(tmp_path / "cache.db")
    first = CachingLM(build(), path)
    getattr(first, kind)(requests(kind, [("A text", " and more")[: 1 + (kind == "loglikelihood")]]))
    first.dbdict.close()
    with pytest.raises(InvalidInputError, match=r"the cache \S+cache.db holds results without tokens.* --use_cache"):
        CachingLM(build(log_tokens=True), path)
    CachingLM(build(), path)  # numbers are what they are


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"stride": 24}, "of stride=None, and this is stride=24"),
        ({"max_length": 50}, "of max_length=96, and this is max_length=50"),
        ({"prefix_token_id": 7}, "of prefix_token_id=0, and this is prefix_token_id=7"),
        ({"pretrained": "mamba"}, "of class=LlamaForCausalLM, .*and this is class=MambaForCausalLM"),
    ],
)
def test_a_cache_of_another_model_or_other_options_is_refused(build, tmp_path, other, message):
    """lm-eval identifies cached requests by their texts alone."""
    path = str(tmp_path / "cache.db")
    first = CachingLM(build(), path)
    first.loglikelihood_rolling(requests("loglikelihood_rolling", [(TEXT,)]))
    first.dbdict.close()
    if "pretrained" in other:
        other = {"pretrained": tiny_model(other["pretrained"]), "max_length": 96}
    with pytest.raises(InvalidInputError, match=f"the cache .*cache.db holds results {message}.*; give --use_cache"):
        CachingLM(build(**other), path)
    CachingLM(build(batch_size=1), path)  # changes no result


def test_shortcuts_are_checked_after_the_cache_and_only_if_something_is_scored(build, tmp_path, monkeypatch):
    path, checked = str(tmp_path / "cache.db"), []
    monkeypatch.setattr("xent_metrics.hosts.lm_eval.models.hf_lm.verify", lambda *args, **options: checked.append(1))
    first = CachingLM(build(), path)
    first.generate_until(requests("generate_until", [("A text", {"max_gen_toks": 2, "until": ["."]})]))
    first.dbdict.close()
    with pytest.raises(InvalidInputError, match="give --use_cache another name"):
        CachingLM(build(stride=24), path)
    assert checked == []
    again = CachingLM(build(), path)
    for _ in range(2):
        again.loglikelihood(requests("loglikelihood", PAIRS))
    assert checked == [1]


def test_a_cache_of_another_module_or_other_options_is_refused(tmp_path):
    path = str(tmp_path / "cache.db")
    first = CachingLM(TorchLM(ByteNet()), path)
    first.loglikelihood_rolling(rolling_requests(TEXTS[0]))
    first.dbdict.close()
    for other, message in (
        (TorchLM(ByteNet(), max_length=8), "of max_length=16, and this is max_length=8"),
        (TorchLM(Watched(), max_length=16), r"of module=\S+:ByteNet, .*and this is module=\S+:Watched"),
    ):
        with pytest.raises(
            InvalidInputError, match=f"the cache .*cache.db holds results {message}.*; give --use_cache"
        ):
            CachingLM(other, path)
    CachingLM(TorchLM(ByteNet(), batch_size=2), path)  # changes no result


def test_a_cache_without_its_model_is_refused(build, model, tokenizer, tmp_path):
    path = str(tmp_path / "cache.db")
    first = CachingLM(stock(model, tokenizer), path)
    first.loglikelihood(requests("loglikelihood", PAIRS))
    first.dbdict.close()
    with pytest.raises(
        InvalidInputError, match="holds results of another model: it doesn't say which; give --use_cache"
    ):
        CachingLM(build(), path)


def test_a_cache_with_tokens_is_taken(build, tmp_path):
    path = str(tmp_path / "cache.db")
    pairs, texts = requests("loglikelihood", PAIRS), requests("loglikelihood_rolling", [(TEXT,)])
    first = CachingLM(build(log_tokens=True), path)
    found = first.loglikelihood(pairs), first.loglikelihood_rolling(texts)
    first.dbdict.close()
    again = CachingLM(build(log_tokens=True), path)
    assert (again.loglikelihood(pairs), again.loglikelihood_rolling(texts)) == found


# Requests that can't be scored.


def test_a_continuation_without_tokens_is_refused(lm):
    for pair in (("A context", ""), ("", ""), ("", "<|end|>")):
        after = "" if pair[0] else " after the id 0 that begins a text"
        with pytest.raises(InvalidInputError, match=rf"has 0 tokens{after}; expected 1 to max_length=96"):
            choices(lm, [PAIRS[0], pair])


def test_a_continuation_longer_than_the_window_is_refused_before_anything_runs(lm, monkeypatch):
    monkeypatch.setattr(lm.forward, "states", lambda *args: pytest.fail("the model ran"))
    with pytest.raises(
        InvalidInputError, match=r"'The loss of a language mo … .* has \d+ tokens.*loglikelihood_rolling"
    ):
        choices(lm, [PAIRS[0], ("A", TEXT)])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (("context", ""), "the continuation '' of 'context' has 0 tokens; expected 1 to max_length=16.*doc_to_target"),
        (("", ""), "the continuation '' of '' has 0 tokens after the id 256 that begins a text; expected 1 to"),
        (("a", "b" * 17), "has 17 tokens; expected 1 to max_length=16"),
    ],
)
def test_continuations_that_cannot_be_scored(request_, message):
    watched = Watched()
    lm = TorchLM(watched, max_length=16)
    watched.seen.clear()
    with pytest.raises(InvalidInputError, match=message):
        lm.loglikelihood(pairs(("fine", "too"), request_))
    assert watched.seen == []


def test_a_context_that_does_not_fit_is_cut_on_the_left(lm, model, tokenizer, caplog):
    pair = (TEXT * 2, " the end")
    with caplog.at_level(logging.WARNING, logger="xent_metrics"):
        found = choices(lm, [pair])
    assert "1 requests are cut on the left" in caplog.text
    assert found[0][0] == pytest.approx(choices(stock(model, tokenizer), [pair])[0][0], rel=1e-5)


def test_a_context_of_spaces_is_an_empty_one(lm, model, tokenizer):
    [spaces], [empty] = choices(lm, [("  ", "The loss")]), choices(lm, [("", "  The loss")])
    assert spaces[0] == pytest.approx(empty[0], rel=1e-6)


def test_without_bos_and_eos_only_texts_without_context_need_a_prefix(model):
    bare = tiny_tokenizer(bos_token=None, eos_token=None)
    lm = XentHFLM(pretrained=model, tokenizer=bare)
    assert choices(lm, PAIRS[:2])[0][0] < 0
    for run in (lambda: choices(lm, [("", "Bytes")]), lambda: rolling(lm, TEXT)):
        with pytest.raises(InvalidInputError, match=r"^TokenizersBackend has no BOS and no EOS token.*prefix_token_id"):
            run()
    assert rolling(XentHFLM(pretrained=model, tokenizer=bare, prefix_token_id=0), TEXT)[0] < 0


def test_ids_without_a_context_are_refused(lm, monkeypatch):
    monkeypatch.setattr(lm.forward, "states", lambda *args: pytest.fail("the model ran"))
    with pytest.raises(InvalidInputError, match="needs a context of at least one id"):
        lm._loglikelihood_tokens([(None, [], [1, 2])])


# Progress.


def test_one_bar_shows_tokens_per_second(lm, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(progress, "tqdm", partial(progress.tqdm, file=out))
    monkeypatch.setattr(progress, "_SECONDS", 0)
    lm.loglikelihood(requests("loglikelihood", PAIRS))
    assert "tok/s" in out.getvalue()
    assert "100%" in out.getvalue()
    assert "<00:00" in out.getvalue()  # what remains
    assert out.getvalue().count("\n") == 1


def test_there_is_no_bar_if_none_is_wanted(lm, capsys):
    lm.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(TEXT,)]), disable_tqdm=True)
    assert capsys.readouterr().err == ""
