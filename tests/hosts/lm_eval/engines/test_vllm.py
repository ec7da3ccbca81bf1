"""`xent-vllm` on objects of vLLM's documented shapes: lm-eval's own class around a stand-in for the engine."""

from __future__ import annotations

import pytest
from support.engines import LENGTH, LLM, Logprob, check_generated, check_same, vllm_in_place
from support.hf_model import TEXT, requests, rolling

from xent_metrics.errors import EngineError, MissingExtraError
from xent_metrics.hosts.lm_eval.engines.vllm import XentVLLM


@pytest.fixture(scope="module")
def vllm():
    with vllm_in_place() as model_class:
        yield model_class


@pytest.fixture
def build(vllm, folder):
    return lambda **options: vllm(folder, **{"max_model_len": LENGTH + 2} | options)


@pytest.mark.parametrize("batch_size", ["auto", 4])
def test_scores_are_those_of_xent_hf(build, hf, batch_size):
    check_same(build(batch_size=batch_size), hf)


def test_generated_texts_have_scores_where_they_are_asked_for(build, hf):
    check_generated(build(), hf)


def test_prompts_fill_the_context_and_no_more(build):
    lm = build()
    rolling(lm, TEXT)
    assert max(map(len, lm.model.prompts)) == LENGTH + 1


def test_a_tie_counts_as_correct_whatever_its_rank(build, monkeypatch):
    """vLLM counts ranks with ≥, so that a tied token has rank 2 though it is the first of the likeliest."""

    def tie(entries):
        return [entry and {token: Logprob(-1.0, 2, None) for token in entry} for entry in entries]

    lm = build()
    monkeypatch.setattr(LLM, "change", staticmethod(tie))
    [(_, greedy)] = lm.loglikelihood(requests("loglikelihood", [("The loss", " of")]))
    assert greedy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: None, "expected a log-probability of each of .* from vLLM; got none"),
        (lambda entries: entries[1:], r"from vLLM; got \d+"),
        (lambda entries: [None] * len(entries), "gives no log-probabilities of tokens that it reads"),
        (lambda entries: [None, None, *entries[1:-1]], "are missing"),
        (lambda entries: [e and {i: Logprob(0.0) for i in e} for e in entries], "gives zeros"),
    ],
)
def test_prompts_without_log_probabilities_are_refused(build, monkeypatch, change, message):
    monkeypatch.setattr(LLM, "change", staticmethod(change))
    with pytest.raises(EngineError, match=f"xent-vllm .*{message}"):
        build()


def test_plain_numbers_of_early_versions_are_read(build, hf, monkeypatch):
    plain = staticmethod(lambda entries: [e and {i: value.logprob for i, value in e.items()} for e in entries])
    monkeypatch.setattr(LLM, "change", plain)
    assert rolling(build(), TEXT) == pytest.approx(rolling(hf, TEXT), rel=1e-6)


def test_thinking_is_for_generated_texts(build):
    lm = build(enable_thinking=True, think_end_token="</think>")
    with pytest.raises(ValueError, match="not compatible with loglikelihood"):
        lm.loglikelihood(requests("loglikelihood", [("a", "b")]))


def test_without_vllm_the_model_can_be_imported_but_not_made():
    with pytest.raises(MissingExtraError, match=r"xent-vllm needs its engine: pip install 'lm_eval\[vllm\]'"):
        XentVLLM("folder")
