"""Sizes that follow from a model and its device."""

from __future__ import annotations

import pytest
import torch
from support.hf_model import CONFIGS, tiny_model
from transformers import GPT2Config, LlamaConfig, MixtralConfig

from xent_metrics.hosts.lm_eval.models import sizes
from xent_metrics.hosts.lm_eval.models.packing import Costs
from xent_metrics.hosts.lm_eval.models.sizes import bytes_per_id, costs_on, free_memory, ids_that_fit

CPU, GPU = torch.device("cpu"), torch.device("cuda")
EIGHT_B = LlamaConfig(hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8)


def test_a_cpu_s_costs_are_constants():
    assert costs_on(CPU, EIGHT_B) == Costs() == Costs(pairs_per_token=4096, prefix_overhead=64, branches_apart=False)


def test_a_gpu_s_costs_follow_the_model():
    """By hand: 2 · 4096 · 4096 + 2 · 4096 · 1024 + 3 · 4096 · 14336 weights, of which a pair's attention costs 2 · 4096."""
    weights = 2 * 4096 * (4096 + 1024) + 3 * 4096 * 14336
    costs = costs_on(GPU, EIGHT_B)
    assert costs.pairs_per_token == pytest.approx(0.2 * weights / (2 * 4096))
    assert 1.0 < costs.pairs_per_token / 4096 < 1.5  # about 1.2 hidden sizes
    assert costs.branches_apart


def test_only_active_experts_count():
    config = MixtralConfig(hidden_size=64, intermediate_size=100, num_attention_heads=4, num_key_value_heads=4)
    one, two = (MixtralConfig(**config.to_dict() | {"num_experts_per_tok": n}) for n in (1, 2))
    difference = costs_on(GPU, two).pairs_per_token - costs_on(GPU, one).pairs_per_token
    assert difference == pytest.approx(0.2 * 3 * 64 * 100 / (2 * 64))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_has_sizes(name):
    config = tiny_model(name).config
    found = sizes._Sizes(config)
    assert found.hidden == 48  # the tiny models' own, whatever their configuration calls it
    assert 1 <= found.layers <= 3
    assert costs_on(GPU, config).pairs_per_token > 0


def test_memory_by_hand():
    """GPT-2 in float16: residuals, queries, keys, values and the feed-forward part, and two rows in float32."""
    config = GPT2Config(n_embd=100, n_head=4, n_layer=7, vocab_size=1000)
    layer = 2 * (4 * 100 + 2 * 200 + 3 * 400) + 8 * 100
    assert bytes_per_id(config, 2, longest=50) == layer
    assert bytes_per_id(config, 2, longest=50, logits=True) == layer + 6 * 1000
    assert bytes_per_id(config, 2, longest=50, packing=True) == layer + 50 * 3
    assert bytes_per_id(config, 2, longest=50, caching=True) == layer + 2 * 2 * 7 * 100


def test_the_ids_of_a_batch_have_bounds():
    assert ids_that_fit(10**15, 1) == 2**16
    assert ids_that_fit(0, 1000) == 1
    assert ids_that_fit(10**6, 100) == 5000


def test_the_fullest_device_counts_and_reserved_memory_is_free(monkeypatch):
    free = {0: 100, 1: 70}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device.index], 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert free_memory([torch.device("cuda", 0), torch.device("cuda", 1)]) == 100
    assert free_memory([torch.device("cuda", 0)]) == 130


def test_a_device_may_not_say_how_much_is_free():
    assert free_memory([torch.device("mps")]) is None
    assert free_memory([]) is None
