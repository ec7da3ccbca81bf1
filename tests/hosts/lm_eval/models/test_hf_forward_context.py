"""The hook `forward_context`: models run within contexts that agree; others are switched off with a line in the log."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch
from support.hf_model import TEXT, choices, context_plugin, rolling, stock, tiny_model

from xent_metrics import hookimpl
from xent_metrics.hosts.lm_eval import XentHFLM


class ScaledNorm:
    """A reusable context within which the last norm of the model is multiplied by `factor`; counts its uses."""

    def __init__(self, model, factor=1.0):
        self.norm, self.factor = model.model.norm, factor
        self.entered = self.open = 0

    def __enter__(self):
        assert not torch.is_grad_enabled()
        assert not self.open
        self.open, self.entered = 1, self.entered + 1
        self.handle = self.norm.register_forward_hook(lambda module, given, output: output * self.factor)

    def __exit__(self, *raised):
        self.open = 0
        self.handle.remove()


@pytest.fixture
def model():
    return tiny_model("llama_tied")


@pytest.fixture
def load(install, tokenizer, caplog):
    """Loads a model with plugins; `said` has the messages about contexts in the log."""

    def load(model, *plugins, **options):
        install(*plugins)
        with caplog.at_level(logging.WARNING, logger="xent_metrics"):
            lm = XentHFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, **options)
            assert lm.forward  # checked on first use
        messages = [record.getMessage() for record in caplog.records]
        lm.said = [message for message in messages if "forward_context" in message]
        return lm

    return load


def test_every_forward_runs_within_a_right_context(load, model, monkeypatch):
    context = ScaledNorm(model)
    lm = load(model, context_plugin(lambda given: context if given is model else None))
    assert lm.forward.context_on
    assert lm.said == []
    context.entered, forwards = 0, []
    run = model.model.forward

    def within(*args, **kwargs):
        forwards.append(context.open)
        return run(*args, **kwargs)

    monkeypatch.setattr(model.model, "forward", within)
    assert [one[0] for one in choices(lm)] == pytest.approx(
        [one[0] for one in choices(stock(model, lm.tokenizer))], rel=1e-5
    )
    ours = [place for place, open_ in enumerate(forwards) if open_]
    assert ours
    assert context.entered == len(ours)
    forwards.clear()
    rolling(lm, TEXT)
    assert forwards
    assert all(forwards)  # stock's forwards, outside of any context, are in the first list
    assert not context.open


@pytest.mark.parametrize(
    ("give", "why"),
    [
        (lambda model: ScaledNorm(model, 1.01), r"its results are 1\.0e-02 off the model's own \(at most 1e-04\)"),
        (lambda model: ScaledNorm(model, float("nan")), r"its results are nan off the model's own"),
        (lambda model: contextmanager(lambda: iter(()))(), "it raises RuntimeError: generator didn't yield"),
        (lambda model: "no context", r"it raises \w+: .*(context manager|__enter__)"),  # the latter in Python 3.10
        (lambda model: contextmanager(lambda: iter([None]))(), "it raises AttributeError"),  # can be entered only once
    ],
)
def test_a_context_that_disagrees_or_raises_is_left_out_with_a_line(load, model, give, why):
    lm = load(model, context_plugin(give))
    assert not lm.forward.context_on
    [said] = lm.said
    assert said.startswith(
        "xent-hf: forward_context is off for LlamaForCausalLM, so the model runs without the plugin: "
    )
    assert re.search(why, said)
    assert all((lm.forward.hidden, lm.forward.packing, lm.forward.caching))
    assert rolling(lm, TEXT) == pytest.approx(rolling(stock(model, lm.tokenizer), TEXT), rel=1e-5)


def test_a_plugin_that_raises_is_named_and_left_out(load, model):
    @hookimpl
    def forward_context(model):
        raise LookupError("no such kernel")

    fails = ModuleType("fails")
    fails.forward_context = forward_context
    lm = load(model, context_plugin(ScaledNorm), fails)  # the one loaded last is asked first
    assert not lm.forward.context_on
    [said] = lm.said
    assert "backend2" in said
    assert "backend1" not in said
    assert "forward_context raised LookupError: no such kernel" in said
    assert rolling(lm, TEXT) == pytest.approx(rolling(stock(model, lm.tokenizer), TEXT), rel=1e-5)


def test_without_a_plugin_that_gives_one_nothing_is_said(load, model):
    lm = load(model, context_plugin(lambda model: None))
    assert not lm.forward.context_on
    assert lm.said == []


def test_with_mixed_precision_no_plugin_is_asked(load, model):
    asked = []
    lm = load(model, context_plugin(asked.append), mixed_precision_dtype="bfloat16")
    assert asked == []
    assert not lm.forward.context_on


def test_a_context_is_compared_on_both_sides_of_a_sliding_window(load):
    """Shorter inputs than the sliding window need no mask, and so run other attention."""
    model = tiny_model("mistral_window")
    lengths = []

    class Watched(ScaledNorm):
        def __enter__(self):
            super().__enter__()
            self.watch = self.norm.register_forward_hook(lambda module, given, output: lengths.append(output.shape[1]))

        def __exit__(self, *raised):
            super().__exit__()
            self.watch.remove()

    lm = load(model, context_plugin(Watched), max_length=88)
    assert lm.forward.context_on
    assert lengths == [15, 4, 88, 23]  # one less than the window, and the longest, each before a batch of short ones


def test_a_context_isn_t_blamed_for_what_a_batch_does(load):
    """Dynamically quantized layers scale by the largest number of a batch."""
    model = torch.ao.quantization.quantize_dynamic(tiny_model("llama_untied"), {torch.nn.Linear}, dtype=torch.qint8)
    assert load(model, context_plugin(lambda model: torch.no_grad())).forward.context_on
