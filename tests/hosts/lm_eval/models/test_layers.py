"""Parts of a model's layers by plugins' hooks: what is found, what it is asked, and what happens when it isn't right."""

from __future__ import annotations

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from support.hf_model import CONFIGS, TEXT, multiple_choice, requests, stock, tiny_model, tiny_tokenizer
from torch.nn import functional as F

from xent_metrics import hookimpl
from xent_metrics.errors import PluginError
from xent_metrics.hosts.lm_eval import XentHFLM
from xent_metrics.hosts.lm_eval.models.layers import Layers, may_replace

HOOKS = ("attention_backend", "rotary_backend", "norm_backend", "gated_backend")


class Backends:
    """A plugin of all four hooks, in float64 by torch, which counts what it is asked; other results by name."""

    def __init__(self, **others):
        self.forget()

        def answer(hook, *given):
            result = others[hook](*given) if hook in others else right(hook, *given)
            self.asked[hook] += 1
            self.answered[hook] += result is not None
            return result

        @hookimpl
        def attention_backend(query, key, value, scale):
            return answer("attention_backend", query, key, value, scale)

        @hookimpl
        def rotary_backend(states, cos, sin):
            return answer("rotary_backend", states, cos, sin)

        @hookimpl
        def norm_backend(states, weight, eps):
            return answer("norm_backend", states, weight, eps)

        @hookimpl
        def gated_backend(states, gate, up):
            return answer("gated_backend", states, gate, up)

        made = (attention_backend, rotary_backend, norm_backend, gated_backend)
        self.__dict__ |= dict(zip(HOOKS, made, strict=True))

    def forget(self) -> None:
        self.asked, self.answered = dict.fromkeys(HOOKS, 0), dict.fromkeys(HOOKS, 0)

    @property
    def used(self):
        return {hook for hook, count in self.answered.items() if count}


def right(hook, *given):
    given = [part.double() if isinstance(part, torch.Tensor) else part for part in given]
    if hook == "attention_backend":
        query, key, value, scale = given
        result = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    elif hook == "rotary_backend":
        states, cos, sin = given
        left, right = states.chunk(2, -1)
        result = states * cos[:, None] + torch.cat([-right, left], -1) * sin[:, None]
    elif hook == "norm_backend":
        result = F.rms_norm(given[0], given[1].shape, given[1], given[2])
    else:
        states, gate, up = given
        assert gate.shape == up.shape
        result = F.silu(F.linear(states, gate)) * F.linear(states, up)
    return result.float()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def told(caplog) -> list[str]:
    """What xent-hf logged."""
    return [record.message for record in caplog.records if record.name.startswith("xent_metrics")]


#: What a plugin can take over of each architecture, in windows without a mask.
ALL = {*HOOKS}
FOUND = {
    "gpt2": {"attention_backend"},
    "gpt_neo_local": set(),  # its attention is its own
    "gpt_neox": {"attention_backend"},  # rotates a quarter of each head, within the function
    "llama_tied": ALL,
    "llama_untied": ALL,
    "mistral_window": ALL - {"attention_backend"},  # by a mask
    "gemma2": ALL - {"attention_backend", "gated_backend"},  # caps scores; gelu
    "gemma3": ALL - {"gated_backend"},  # gelu
    "qwen2": ALL,
    "qwen2_window": ALL,
    "qwen3": ALL,
    "phi": {"attention_backend", "rotary_backend"},
    "opt": {"attention_backend"},
    "bloom": set(),
    "mamba": {"norm_backend"},
    "mixtral": ALL - {"gated_backend"},  # experts
    "cohere": {"attention_backend", "gated_backend"},  # rotates neighbours; layer norms
    "granite": ALL,
    "mpt": set(),
    "recurrent_gemma": {"attention_backend", "norm_backend"},  # rotates half of each head; gelu
    "qwen3_next": ALL - {"rotary_backend"},  # rotates a quarter of each head
    "phi3_longrope": ALL - {"gated_backend"},  # one projection for gate and up
    "llama_dynamic": ALL,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_plugin_computes_of_each_architecture_changes_no_answer(name, install, tokenizer, caplog):
    given = requests("loglikelihood", multiple_choice())
    rolling = requests("loglikelihood_rolling", [(TEXT[:120],)])
    install()
    plain = XentHFLM(tiny_model(name), tokenizer=tokenizer, batch_size=4, max_length=48)
    assert not plain.forward.layers
    backends = Backends()
    install(backends)
    with caplog.at_level(logging.WARNING):
        lm = XentHFLM(tiny_model(name), tokenizer=tokenizer, batch_size=4, max_length=48)
    assert not [line for line in told(caplog) if "layers" in line]
    assert lm.forward.layers
    backends.forget()
    found, expected = (list(model.loglikelihood(given, disable_tqdm=True)) for model in (lm, plain))
    assert [float(value) for value, _ in found] == pytest.approx([float(value) for value, _ in expected], rel=1e-5)
    assert [bool(greedy) for _, greedy in found] == [bool(greedy) for _, greedy in expected]
    texts = [model.loglikelihood_rolling(rolling, disable_tqdm=True)[0] for model in (lm, plain)]
    assert float(texts[0]) == pytest.approx(float(texts[1]), rel=1e-5)
    assert backends.used == FOUND[name]


def test_the_answers_are_those_of_hf(install, tokenizer):
    install(Backends())
    given = requests("loglikelihood", multiple_choice())
    found = XentHFLM(tiny_model("qwen3"), tokenizer=tokenizer, batch_size=4).loglikelihood(given, disable_tqdm=True)
    expected = stock(tiny_model("qwen3"), tokenizer).loglikelihood(given, disable_tqdm=True)
    assert [float(value) for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5)


@torch.no_grad()
def test_the_model_is_its_own_again_afterwards_and_after_an_error(install):
    import transformers.models.llama.modeling_llama as source

    install(Backends())
    model, rotate = tiny_model("llama_tied"), source.apply_rotary_pos_emb
    ids = torch.arange(20)[None]
    expected = model(ids).logits
    layers = Layers(model)
    with layers.used():
        assert source.apply_rotary_pos_emb is not rotate
        assert "forward" in vars(model.model.norm)
        inside = model(ids).logits
    with pytest.raises(IndexError), layers.used():
        model(torch.tensor([[9999]]))
    assert source.apply_rotary_pos_emb is rotate
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(model(ids).logits, expected)
    assert not torch.equal(inside, expected)  # float64 within
    torch.testing.assert_close(inside, expected, rtol=1e-4, atol=1e-4)


def wrong(hook):
    return {hook: lambda *given: right(hook, *given) * 1.01}


@pytest.mark.parametrize("hook", ["rotary_backend", "norm_backend", "gated_backend"])
def test_a_part_that_is_wrong_runs_as_it_is(hook, install, tokenizer, caplog):
    backends = Backends(**wrong(hook))
    install(backends)
    with caplog.at_level(logging.WARNING):
        lm = XentHFLM(tiny_model("llama_tied"), tokenizer=tokenizer, batch_size=4)
    assert not told(caplog)
    backends.forget()
    given = requests("loglikelihood_rolling", [(TEXT,)])
    [found] = lm.loglikelihood_rolling(given, disable_tqdm=True)
    [expected] = stock(tiny_model("llama_tied"), tokenizer).loglikelihood_rolling(given, disable_tqdm=True)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert backends.used == ALL - {hook}


BROKEN = [
    (wrong("attention_backend"), r"its results are \d\.\de-0\d off those of the model's own"),
    (
        {"norm_backend": lambda *given: 1 / 0},
        "raises PluginError: backend1 of a-third-party: norm_backend raised ZeroDiv",
    ),
    (
        {"gated_backend": lambda states, *rest: right("gated_backend", states, *rest)[..., states.shape[-2] // 20 :]},
        "gated_backend returned",
    ),
    (
        {"attention_backend": lambda query, *rest: query.double()},
        r"returned \(2, 4, \d+, 12\) of float64 on cpu; expected",
    ),
    ({"rotary_backend": lambda *given: "no"}, "rotary_backend returned 'no'; expected a tensor"),
]


@pytest.mark.parametrize(("others", "says"), BROKEN)
def test_layers_are_off_with_one_line_if_a_backend_is_wrong_or_breaks_its_contract(
    others, says, install, tokenizer, caplog
):
    install(Backends(**others))
    with caplog.at_level(logging.WARNING):
        lm = XentHFLM(tiny_model("llama_tied"), tokenizer=tokenizer, batch_size=4)
    [record] = told(caplog)
    assert record.startswith("xent-hf: layers is off for LlamaForCausalLM, so torch computes all of the layers: ")
    assert re.search(says, record)
    given = requests("loglikelihood_rolling", [(TEXT,)])
    [found] = lm.loglikelihood_rolling(given, disable_tqdm=True)
    [expected] = stock(tiny_model("llama_tied"), tokenizer).loglikelihood_rolling(given, disable_tqdm=True)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_backend_that_fails_later_is_named(install, tokenizer):
    fails = []
    install(Backends(norm_backend=lambda *given: 1 / 0 if fails else right("norm_backend", *given)))
    lm = XentHFLM(tiny_model("llama_tied"), tokenizer=tokenizer, batch_size=4)
    fails.append(True)
    with pytest.raises(PluginError, match="backend1 of a-third-party: norm_backend raised ZeroDivisionError"):
        lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(TEXT,)]), disable_tqdm=True)


def test_the_next_backend_is_asked_where_one_takes_nothing(install):
    takes_nothing = Backends(**dict.fromkeys(HOOKS, lambda *given: None))
    takes_all = Backends()
    install(takes_all, takes_nothing)  # the last one is asked first
    model = tiny_model("llama_tied")
    with torch.no_grad(), Layers(model).used():
        model(torch.arange(20)[None], use_cache=False)
    assert min(takes_nothing.asked.values()) > 0
    assert not takes_nothing.used
    assert takes_all.used == ALL


def test_only_plain_float32_models_on_the_cpu_have_parts(install):
    model = tiny_model("llama_tied")
    install()
    assert not may_replace(model)  # no plugin
    install(Backends())
    assert may_replace(model)
    assert not may_replace(tiny_model("llama_tied").bfloat16())
    assert not may_replace(tiny_model("llama_tied").to("meta"))
    assert not may_replace(torch.compile(tiny_model("llama_tied")))
    model.model.layers[0].compile()
    assert not may_replace(model)


def test_mixed_precision_has_no_parts(install, tokenizer):
    backends = Backends()
    install(backends)
    lm = XentHFLM(tiny_model("llama_tied"), tokenizer=tokenizer, mixed_precision_dtype="bfloat16")
    assert not lm.forward.layers
    assert not backends.used


@torch.no_grad()
def test_a_forward_that_somebody_else_put_there_stays(install):
    install(Backends())
    model, calls = tiny_model("llama_tied"), []
    norm = model.model.norm

    def hooked(states, own=norm.forward):
        calls.append(states)
        return own(states)

    norm.forward = hooked
    with Layers(model).used():
        model(torch.arange(20)[None])
    assert len(calls) == 1
    assert norm.forward is hooked


@torch.no_grad()
def test_attention_that_is_not_plainly_causal_is_left_to_torch(install):
    backends = Backends()
    install(backends)
    query = torch.randn(1, 2, 6, 4)
    mask = torch.ones(6, 6).tril().bool()
    with Layers(torch.nn.Linear(1, 1)).used():
        F.scaled_dot_product_attention(query, query, query)
        F.scaled_dot_product_attention(query, query, query, attn_mask=mask)
        F.scaled_dot_product_attention(query, query, query, is_causal=True, dropout_p=0.5)
        F.scaled_dot_product_attention(query, query[:, :, :5], query[:, :, :5], is_causal=True)
        F.scaled_dot_product_attention(query[0], query[0], query[0], is_causal=True)
        F.scaled_dot_product_attention(query, query, query, attn_mask=mask, is_causal=True)
        assert not backends.used
        F.scaled_dot_product_attention(query, query, query, None, 0.0, True)
    assert backends.used == {"attention_backend"}


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
def test_what_only_looks_like_a_part_runs_as_it_is(kind, install):
    install(Backends())
    module = kind()
    with Layers(module).used():
        assert "forward" not in vars(module)


def adapted(model):
    import peft

    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["gate_proj", "up_proj", "down_proj", "q_proj"])
    found = peft.get_peft_model(model, config)
    for name, parameter in found.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)


def other_weights(model):
    state = {name: torch.randn_like(value) * 0.3 for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def steered(model):
    model.model.layers[1].mlp.act_fn.register_forward_hook(lambda module, args, output: output * 2)


def hooked(model):
    norm = model.model.layers[0].input_layernorm
    norm.forward = lambda states, own=norm.forward: own(states) * 2


def another_activation(model):
    model.model.layers[0].mlp.act_fn = torch.nn.GELU()


class Doubled(torch.nn.Linear):
    def forward(self, states):
        return super().forward(states) * 2


def biased(model):
    gate = model.model.layers[0].mlp.gate_proj
    gate.bias = torch.nn.Parameter(torch.randn(gate.out_features))


def another_kind_of_gate(model):
    mlp = model.model.layers[0].mlp
    mlp.gate_proj = Doubled(mlp.gate_proj.in_features, mlp.gate_proj.out_features, bias=False)


def pruned(model):
    mlp = model.model.layers[0].mlp
    for layer in (mlp.gate_proj, mlp.up_proj):  # whose `out_features` stays
        layer.weight = torch.nn.Parameter(layer.weight[:20].clone())
    mlp.down_proj.weight = torch.nn.Parameter(mlp.down_proj.weight[:, :20].clone())


def broadcast(model):
    mlp = model.model.layers[0].mlp
    mlp.up_proj = torch.nn.Linear(mlp.up_proj.in_features, 1, bias=False)


def steered_before(model):
    model.model.layers[1].mlp.up_proj.register_forward_pre_hook(lambda module, given: (given[0] * 2,))


CHANGES = [
    adapted, other_weights, pruned, broadcast, steered, steered_before, hooked, another_activation, biased, another_kind_of_gate
]  # fmt: skip


@torch.no_grad()
def test_a_part_is_only_put_where_it_was_tried(install):
    """A backend that takes long rows alone might give anything there."""
    long = torch.Size((1, 200))
    install(Backends(gated_backend=lambda x, gate, up: torch.ones(1, 200, len(gate)) if x.shape[:-1] == long else None))
    model = tiny_model("llama_untied")
    layers, ids = Layers(model), torch.arange(200)[None] % 50
    expected = model(ids, use_cache=False).logits
    with layers.used():
        torch.testing.assert_close(model(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_hooks_of_all_modules_see_them_all(kind, install):
    install(Backends())
    model, seen = tiny_model("llama_untied"), []
    layers = Layers(model)
    register = getattr(torch.nn.modules.module, f"register_module_{kind}")
    handle = register(lambda module, *_: seen.append(type(module)))
    try:
        model(torch.arange(20)[None])
        expected = seen.copy()
        seen.clear()
        with layers.used():
            model(torch.arange(20)[None])
    finally:
        handle.remove()
    assert seen == expected


@torch.no_grad()
def test_a_hook_within_an_activation_is_heeded(install):
    backends = Backends()
    install(backends)
    model, ids = tiny_model("llama_untied"), torch.arange(20)[None]
    mlps = [layer.mlp for layer in model.model.layers]
    for mlp in mlps:
        mlp.act_fn = torch.nn.Sequential(torch.nn.SiLU())
    layers = Layers(model)
    assert "gated_backend" in backends.used
    for mlp in mlps:
        mlp.act_fn[0].register_forward_hook(lambda module, given, output: output * 2)
    expected = model(ids).logits
    with layers.used():
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_call_with_options_is_the_models_own(install):
    import transformers.models.llama.modeling_llama as source

    install(Backends())
    query, angles = torch.randn(1, 4, 4, 8), torch.randn(1, 4, 8)  # as many heads as ids: either may come first
    given = (query, query, angles.cos(), angles.sin())
    expected = source.apply_rotary_pos_emb(*given, unsqueeze_dim=2)
    with Layers(tiny_model("llama_untied")).used():
        found = source.apply_rotary_pos_emb(*given, unsqueeze_dim=2)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_is_changed_later_is_run_as_it_is_then(change, install):
    install(Backends())
    model, ids = tiny_model("llama_untied"), torch.arange(20)[None]
    layers, before = Layers(model), model(ids).logits
    change(model)
    with layers.used():
        inside = model(ids).logits
    expected = model(ids).logits
    assert float((expected - before).norm() / before.norm()) > 0.1
    torch.testing.assert_close(inside, expected, rtol=1e-3, atol=1e-3)


def kept_by_a_hook(module, seen):
    module.register_forward_hook(lambda module, given, output: seen.append(output))


def kept_by_a_forward(module, seen):
    own = module.forward

    def forward(states):
        seen.append(own(states))
        return seen[-1]

    module.forward = forward


@torch.no_grad()
@pytest.mark.parametrize("keep", [kept_by_a_hook, kept_by_a_forward])
@pytest.mark.parametrize("name", ["gate_proj", "up_proj", "act_fn"])
def test_what_somebody_keeps_of_a_gate_is_computed(keep, name, install):
    install(Backends())
    model, seen = tiny_model("llama_untied"), []
    layers = Layers(model)
    keep(getattr(model.model.layers[0].mlp, name), seen)
    with layers.used():
        model(torch.arange(20)[None])
    assert len(seen) == 1


def without_gradients(hook, *given):
    with torch.no_grad():
        return right(hook, *given)


def test_another_thread_may_train_meanwhile(install):
    install(Backends(**{hook: partial(without_gradients, hook) for hook in HOOKS}))
    model, other = tiny_model("llama_untied"), tiny_model("llama_tied")
    layers = Layers(model)
    with torch.no_grad(), layers.used(), layers.used(), ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: other(torch.arange(20)[None]).logits.sum().backward()).result()
    for parameter in other.parameters():
        assert float(parameter.grad.norm()) > 0
    assert not any("forward" in vars(module) for module in model.modules())


def test_attention_behind_a_sliding_window_is_checked_without_its_mask_too(install, tokenizer, caplog):
    install(Backends(**wrong("attention_backend")))
    with caplog.at_level(logging.WARNING):
        lm = XentHFLM(tiny_model("mistral_window"), tokenizer=tokenizer, batch_size=4)
    assert not lm.forward.layers
    assert "layers is off" in told(caplog)[-1]
