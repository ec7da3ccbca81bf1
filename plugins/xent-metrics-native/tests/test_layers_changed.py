"""A model that is changed, hooked or patched after `forward_context` was made runs as it is then."""

from __future__ import annotations

import pytest
import torch
from support.hf_model import tiny_model
from support.native_parts import context


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
def test_a_part_is_only_put_where_it_was_tried(instead):
    """A C function that takes long rows alone might give anything there."""
    long = torch.Size((1, 200))
    instead(gated=lambda states, gate, up: torch.ones(1, 200, len(gate)) if states.shape[:-1] == long else None)
    model = tiny_model("llama_untied")
    faster, ids = context(model), torch.arange(200)[None] % 50
    expected = model(ids, use_cache=False).logits
    with faster:
        torch.testing.assert_close(model(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_hooks_of_all_modules_see_them_all(kind, instead):
    instead()
    model, seen = tiny_model("llama_untied"), []
    faster = context(model)
    register = getattr(torch.nn.modules.module, f"register_module_{kind}")
    handle = register(lambda module, *_: seen.append(type(module)))
    try:
        model(torch.arange(20)[None])
        expected = seen.copy()
        seen.clear()
        with faster:
            model(torch.arange(20)[None])
    finally:
        handle.remove()
    assert seen == expected


@torch.no_grad()
def test_a_hook_within_an_activation_is_heeded(instead):
    calls = instead()
    model, ids = tiny_model("llama_untied"), torch.arange(20)[None]
    mlps = [layer.mlp for layer in model.model.layers]
    for mlp in mlps:
        mlp.act_fn = torch.nn.Sequential(torch.nn.SiLU())
    faster = context(model)
    assert "gated" in calls.used
    for mlp in mlps:
        mlp.act_fn[0].register_forward_hook(lambda module, given, output: output * 2)
    expected = model(ids).logits
    with faster:
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_call_with_options_is_the_models_own(instead):
    import transformers.models.llama.modeling_llama as source

    instead()
    query, angles = torch.randn(1, 4, 4, 8), torch.randn(1, 4, 8)  # as many heads as ids: either may come first
    given = (query, query, angles.cos(), angles.sin())
    expected = source.apply_rotary_pos_emb(*given, unsqueeze_dim=2)
    with context(tiny_model("llama_untied")):
        found = source.apply_rotary_pos_emb(*given, unsqueeze_dim=2)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_is_changed_later_is_run_as_it_is_then(change, instead):
    instead()
    model, ids = tiny_model("llama_untied"), torch.arange(20)[None]
    faster, before = context(model), model(ids).logits
    change(model)
    with faster:
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
def test_what_somebody_keeps_of_a_gate_is_computed(keep, name, instead):
    instead()
    model, seen = tiny_model("llama_untied"), []
    faster = context(model)
    keep(getattr(model.model.layers[0].mlp, name), seen)
    with faster:
        model(torch.arange(20)[None])
    assert len(seen) == 1
