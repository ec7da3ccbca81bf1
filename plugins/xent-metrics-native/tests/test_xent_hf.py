"""`--model xent-hf` with this plugin: the answers are those without it, and those of lm-eval's `hf`."""

from __future__ import annotations

import logging

import pytest
from support.hf_model import CONFIGS, TEXT, multiple_choice, requests, stock, tiny_model, tiny_tokenizer
from support.native_parts import ALL, FOUND, Calls

from xent_metrics.hosts.lm_eval import XentHFLM
from xent_metrics.plugins import Plugins, use_plugins

CHOICES = requests("loglikelihood", multiple_choice())
TEXTS = requests("loglikelihood_rolling", [(TEXT,), (TEXT[40:],), (TEXT[80:],)])


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def answers(lm):
    """The loglikelihoods of choices, whether each is greedy, and the loglikelihoods of texts."""
    values, greedy = zip(*lm.loglikelihood(CHOICES, disable_tqdm=True), strict=True)
    texts = lm.loglikelihood_rolling(TEXTS, disable_tqdm=True)
    return [float(value) for value in (*values, *texts)], [bool(value) for value in greedy]


def assert_same(found, expected) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1] == expected[1]


@pytest.mark.parametrize("name", CONFIGS)
def test_no_answer_of_any_architecture_changes(name, instead, loaded, tokenizer, caplog):
    """The C functions are replaced by exact ones that take rows of any length, so that all of them are used."""
    calls = instead()
    with caplog.at_level(logging.WARNING, logger="xent_metrics"):
        lm = XentHFLM(tiny_model(name), tokenizer=tokenizer, batch_size=4, max_length=48)
        assert lm.forward.context_on  # checked on first use
    assert not [record for record in caplog.records if "forward_context" in record.message]
    calls.forget()
    found = answers(lm)
    assert calls.used == FOUND[name]
    with use_plugins(Plugins()):
        plain = answers(XentHFLM(tiny_model(name), tokenizer=tokenizer, batch_size=4, max_length=48))
    assert_same(found, plain)


def test_the_answers_in_c_are_those_of_hf(monkeypatch, loaded, tokenizer):
    calls = Calls(monkeypatch, {})
    lm = XentHFLM(tiny_model("qwen3"), tokenizer=tokenizer, batch_size=4)
    assert lm.forward.context_on  # checked on first use
    calls.forget()
    assert_same(answers(lm), answers(stock(tiny_model("qwen3"), tokenizer)))
    assert calls.used == ALL


def test_mixed_precision_runs_without_the_plugin(monkeypatch, loaded, tokenizer):
    calls = Calls(monkeypatch, {})
    answers(XentHFLM(tiny_model("llama_tied"), tokenizer=tokenizer, mixed_precision_dtype="bfloat16"))
    assert not calls.used
