"""`forward_context`: what it replaces in a model's layers, what it leaves alone, and that the model is its own afterwards."""

from __future__ import annotations

import threading
from concurrent import futures
from contextlib import suppress

import pytest
import torch
from support import native as native_build
from support.hf_model import CONFIGS, tiny_model
from support.native_parts import ALL, FOUND, PARTS, Calls, assert_close, context, logits, right
from torch.nn import functional as F

native = native_build.build()


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_each_architecture_computes_the_same(name, instead):
    calls, model, ids = instead(), tiny_model(name), torch.randint(384, (2, 40))
    expected, faster = logits(model, ids), context(model)
    calls.forget()
    with faster:
        assert_close(logits(model, ids), expected)
    assert calls.used == FOUND[name]
    assert torch.equal(logits(model, ids), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_each_architecture_computes_the_same_in_c(name, monkeypatch):
    """Of 2 · 70 ids, which are enough for every C function."""
    calls, model, ids = Calls(monkeypatch, {}), tiny_model(name), torch.randint(384, (2, 70))
    expected, faster = logits(model, ids), context(model)
    calls.forget()
    with faster:
        assert_close(logits(model, ids), expected)
    assert calls.used == FOUND[name]


@torch.no_grad()
def test_padded_rows_compute_the_same(monkeypatch):
    calls, model, ids = Calls(monkeypatch, {}), tiny_model("llama_untied"), torch.randint(384, (2, 70))
    mask = torch.ones(2, 70, dtype=torch.long)
    mask[1, 50:] = 0
    expected, faster = model(ids, attention_mask=mask).logits, context(model)
    calls.forget()
    with faster:
        found = model(ids, attention_mask=mask).logits
    assert_close(found[mask.bool()], expected[mask.bool()])
    assert calls.used == ALL - {"attention"}


def test_the_hook_is_this_plugins(loaded):
    assert type(loaded.manager.hook.forward_context(model=tiny_model("llama_tied"))) is native.layers.FasterLayers
    assert loaded.manager.hook.forward_context(model=tiny_model("llama_tied").double()) is None


@torch.no_grad()
def test_the_model_is_its_own_again_afterwards_and_after_an_error(instead):
    import transformers.models.llama.modeling_llama as source

    instead()
    model, own = tiny_model("llama_tied"), source.apply_rotary_pos_emb
    ids = torch.arange(20)[None]
    expected, faster = model(ids).logits, context(model)
    for _ in range(2):
        with faster:
            assert source.apply_rotary_pos_emb is not own
            assert "forward" in vars(model.model.norm)
            inside = model(ids).logits
        with pytest.raises(IndexError), faster:
            model(torch.tensor([[9999]]))
        assert source.apply_rotary_pos_emb is own
        assert not any("forward" in vars(module) for module in model.modules())
        assert torch.equal(model(ids).logits, expected)
        assert not torch.equal(inside, expected)  # float64 within
        assert_close(inside, expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["rotary", "norm", "gated"])
def test_a_part_that_is_wrong_runs_as_it_is(name, instead):
    calls, model, ids = instead(**{name: lambda *given: right(name, *given) * 1.01}), *model_and_ids()
    expected, faster = logits(model, ids), context(model)
    calls.forget()
    with faster:
        assert_close(logits(model, ids), expected)
    assert calls.used == ALL - {name}


@torch.no_grad()
def test_what_c_does_not_take_is_the_models_own(instead):
    """Parts that agree on the trial's 160 rows, and then take nothing."""
    accepting = [True]
    kept = {name: lambda *given, name=name: right(name, *given) if accepting else None for name in PARTS}
    calls, model, ids = instead(**kept), *model_and_ids()
    expected, faster = logits(model, ids), context(model)
    accepting.clear()
    calls.forget()
    with faster:
        assert torch.equal(logits(model, ids), expected)
    assert set(calls.asked) == ALL
    assert not calls.used


def model_and_ids():
    return tiny_model("llama_tied"), torch.arange(20)[None]


def test_only_plain_float32_models_on_the_cpu_have_a_context():
    model = tiny_model("llama_tied")
    assert native.forward_context(model) is not None
    assert native.forward_context(tiny_model("llama_tied").bfloat16()) is None
    assert native.forward_context(tiny_model("llama_tied").to("meta")) is None
    assert native.forward_context(torch.compile(tiny_model("llama_tied"))) is None
    model.model.layers[0].compile()
    assert native.forward_context(model) is None


def test_a_model_that_is_float32_but_for_one_weight_has_no_context():
    model = tiny_model("llama_tied")
    model.model.norm.bfloat16()
    assert native.forward_context(model) is None


@torch.no_grad()
def test_mixed_precision_is_the_models_own(instead):
    calls, (model, ids) = instead(), model_and_ids()
    faster = context(model)
    calls.forget()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = logits(model, ids)
        with faster:
            assert torch.equal(logits(model, ids), expected)
    assert not calls.asked


def test_gradients_are_the_models_own(instead):
    calls, (model, ids) = instead(), model_and_ids()
    faster = context(model)
    calls.forget()
    with faster:
        logits(model, ids).sum().backward()
    assert not calls.asked
    assert all(float(parameter.grad.norm()) > 0 for parameter in model.parameters())


@torch.no_grad()
def test_a_forward_that_somebody_else_put_there_stays(instead):
    instead()
    model, calls = tiny_model("llama_tied"), []
    norm = model.model.norm

    def hooked(states, own=norm.forward):
        calls.append(states)
        return own(states)

    norm.forward = hooked
    with context(model):
        model(torch.arange(20)[None])
    assert len(calls) == 1
    assert norm.forward is hooked


@torch.no_grad()
def test_attention_that_is_not_plainly_causal_is_left_to_torch(instead):
    calls = instead()
    query = torch.randn(1, 2, 6, 4)
    mask = torch.ones(6, 6).tril().bool()
    with context(torch.nn.Linear(1, 1)):
        F.scaled_dot_product_attention(query, query, query)
        F.scaled_dot_product_attention(query, query, query, attn_mask=mask)
        F.scaled_dot_product_attention(query, query, query, is_causal=True, dropout_p=0.5)
        F.scaled_dot_product_attention(query, query[:, :, :5], query[:, :, :5], is_causal=True)
        F.scaled_dot_product_attention(query[0], query[0], query[0], is_causal=True)
        with suppress(RuntimeError):  # refused by torch 2.15
            F.scaled_dot_product_attention(query, query, query, attn_mask=mask, is_causal=True)
        with pytest.raises(RuntimeError, match="must match"):
            F.scaled_dot_product_attention(query.repeat(1, 2, 1, 1), query, query, is_causal=True)
        assert not calls.asked
        F.scaled_dot_product_attention(query, query, query, None, 0.0, True)
        F.scaled_dot_product_attention(query.repeat(1, 2, 1, 1), query, query, is_causal=True, enable_gqa=True)
    assert calls.asked == ["attention"] * 2
    assert calls.used == {"attention"}


class Limited(torch.nn.Module):
    """A gated MLP that differs from others in large numbers only."""

    def __init__(self, width=8):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (torch.nn.Linear(width, width, bias=False) for _ in range(3))
        self.act_fn = torch.nn.SiLU()

    def forward(self, states):
        return self.down_proj(self.act_fn(self.gate_proj(states).clamp(max=10)) * self.up_proj(states))


class Gelu(Limited):
    """… that gives nothing but zeros at first."""

    def __init__(self):
        super().__init__()
        self.act_fn = torch.nn.GELU()
        torch.nn.init.zeros_(self.down_proj.weight)

    def forward(self, states):
        return self.down_proj(self.act_fn(self.gate_proj(states)) * self.up_proj(states))


class EpsilonOutsideRMSNorm(torch.nn.Module):
    """A norm that differs from others in small numbers only."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, states):
        return self.weight * states / (states.pow(2).mean(-1, keepdim=True).sqrt() + self.eps)


class TwoArgumentsRMSNorm(EpsilonOutsideRMSNorm):
    def forward(self, states, gate=None):
        return F.rms_norm(states, (8,), self.weight, self.eps)


@torch.no_grad()
@pytest.mark.parametrize("kind", [Limited, Gelu, EpsilonOutsideRMSNorm, TwoArgumentsRMSNorm])
def test_what_only_looks_like_a_part_runs_as_it_is(kind, instead):
    instead()
    module = kind()
    with context(module):
        assert "forward" not in vars(module)


def test_another_thread_may_train_meanwhile(instead):
    instead(**{name: lambda *given, name=name: without_gradients(name, *given) for name in PARTS})
    model, other = tiny_model("llama_untied"), tiny_model("llama_tied")
    faster = context(model)
    with torch.no_grad(), faster, faster, futures.ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: other(torch.arange(20)[None]).logits.sum().backward()).result()
    for parameter in other.parameters():
        assert float(parameter.grad.norm()) > 0
    assert not any("forward" in vars(module) for module in model.modules())


def without_gradients(name, *given):
    with torch.no_grad():
        return right(name, *given)


def test_another_threads_context_waits():
    one, other = context(tiny_model("llama_tied")), context(tiny_model("llama_untied"))
    order, started = [], threading.Event()

    def enter() -> None:
        started.set()
        with other:
            order.append("other")

    with futures.ThreadPoolExecutor(1) as pool:
        with one:
            pending = pool.submit(enter)
            started.wait()
            with pytest.raises(futures.TimeoutError):
                pending.result(timeout=0.2)
            order.append("one")
        pending.result()
    assert order == ["one", "other"]
