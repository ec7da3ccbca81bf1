"""`xent-sglang` on objects of SGLang's documented shapes: lm-eval's own class around a stand-in for the engine."""

from __future__ import annotations

import sys

import pytest
from support.engines import LENGTH, Engine, check_same, sglang_in_place
from support.hf_model import TEXT, rolling

from xent_metrics.errors import EngineError, MissingExtraError
from xent_metrics.hosts.lm_eval import XentSGLang


@pytest.fixture(scope="module")
def sglang():
    with sglang_in_place() as model_class:
        yield model_class


@pytest.fixture
def build(sglang, folder):
    return lambda **options: sglang(folder, **{"context_length": LENGTH + 3} | options)


@pytest.mark.parametrize("batch_size", ["auto", 1, 4])
def test_scores_are_those_of_xent_hf(build, hf, batch_size):
    check_same(build(batch_size=batch_size), hf)


def changed(name, change):
    """A fault in what SGLang reports of prompts; it reports none of them while it generates."""

    def meta_info(found):
        return found | {name: change(found[name])} if found["input_token_logprobs"] else found

    return staticmethod(meta_info)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "input_token_logprobs",
            lambda own: own[1:],
            "expected input_token_logprobs and input_top_logprobs of equal length",
        ),
        ("input_top_logprobs", lambda top: [], "of equal length in SGLang's meta_info; got .* and 0 entries"),
        ("input_token_logprobs", lambda own: [(a, b + 1, c) for a, b, c in own], "expected the same ids"),
        ("input_token_logprobs", lambda own: [(None, b, c) for _, b, c in own], "gives no log-probabilities of tokens"),
        ("input_token_logprobs", lambda own: [(a and 0.0, b, c) for a, b, c in own], "gives zeros"),
        ("input_top_logprobs", lambda top: [None] * len(top), "are missing"),
    ],
)
def test_prompts_without_log_probabilities_are_refused(build, monkeypatch, name, change, message):
    monkeypatch.setattr(Engine, "change", changed(name, change))
    with pytest.raises(EngineError, match=f"xent-sglang .*{message}"):
        build()


def test_the_tokenizer_has_a_name(build, folder):
    assert build().tokenizer_name == folder.replace("/", "__")


def test_texts_of_several_windows(build, hf):
    assert rolling(build(), TEXT * 2) == pytest.approx(rolling(hf, TEXT * 2), rel=1e-6)


def test_without_sglang_the_model_can_not_be_made(monkeypatch):
    monkeypatch.setitem(sys.modules, "sglang", None)
    with pytest.raises(MissingExtraError, match="xent-sglang needs its engine"):
        XentSGLang("folder")
