"""`HFForward` on a device: what waits for it, what is copied to it, rows end to end, and models in several parts."""

from __future__ import annotations

import copy
import logging
from types import ModuleType

import pytest
import torch
from support.fake_device import Reads, on_fake_device
from support.hf_model import TEXT, choices, rolling, tiny_model
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from xent_metrics import hookimpl
from xent_metrics.hosts.lm_eval import XentHFLM
from xent_metrics.hosts.lm_eval.models import hf_forward, hf_lm
from xent_metrics.hosts.lm_eval.models.hf_forward import HFForward, repeated
from xent_metrics.hosts.lm_eval.models.packing import Costs, after, alone
from xent_metrics.hosts.lm_eval.models.verify import distance
from xent_metrics.hosts.lm_eval.models.windows import Window

CPU = torch.device("cpu")
WINDOWS = [Window((*range(70), 3 * i, i + 1), (i + 1, 7)) for i in range(4)]
TREES = after(0, WINDOWS, packing=True).rows
CHAINS = [alone(place, window) for place, window in enumerate(WINDOWS)]
TARGETS = [target for window in WINDOWS for target in window.targets]


def forward_of(model, device=CPU):
    """A forward with its shortcuts, which `verify` can't check on a device without data."""
    forward = HFForward(model, device=device, bytes_table=lambda size: torch.ones(size, dtype=torch.long))
    forward.find_head()
    forward.hidden = forward.packing = forward.caching = True
    return forward


@pytest.mark.parametrize("name", ["llama_tied", "gpt2", "gemma3", "qwen3", "gpt_neox"])
def test_a_batch_is_started_without_waiting_for_the_device(name):
    """No value is read, nothing is copied back, and nothing is float64, which some devices don't have."""
    model = tiny_model(name)
    with on_fake_device(model) as (device, seen):
        forward = forward_of(model, device)
        for number, rows in enumerate((TREES, CHAINS, TREES)):
            seen.clear()
            scores = forward.score(forward.states(rows), TARGETS)
            assert scores.nll.device.type == scores.num_bytes.device.type == "cuda"
            assert seen["float64"] == 0
            # Ids, places, targets; the ends and depths of trees; the table of bytes, once.
            assert seen["copies"] == 3 + (rows is TREES) + (number == 0)


def test_masks_are_made_on_the_device():
    """Two numbers per id are copied for them, not one for each pair of ids."""
    model = tiny_model("llama_tied")
    with on_fake_device(model) as (device, seen):
        forward = forward_of(model, device)
        cache = forward.prefix_cache(TREES[0].tokens[:40])
        rows = after(40, WINDOWS, packing=True).rows
        seen.clear()
        forward.states(rows, cache)
        ids, places = sum(map(len, rows)), 8
        assert seen["bytes"] == 8 * (ids + places + 2 * (40 + ids))


@pytest.mark.parametrize(
    ("name", "reads"), [("llama_tied", 0), ("qwen3", 0), ("gpt_neox", 0), ("gpt2", 1), ("gemma2", 0), ("gemma3", 0)]
)
def test_a_batch_waits_for_its_results_and_at_most_once_more(name, reads):
    """GPT-2 looks whether texts are padded. The scores are launched without any read, as on a device without data."""
    forward = forward_of(tiny_model(name))
    for rows, expected in ((TREES, 0), (CHAINS, reads)):
        with Reads() as seen:
            forward.states(rows)
        assert seen.count == expected


def test_distances_are_taken_on_the_cpu():
    """In float64, which some devices don't have; under no_host_sync the copy raises before that."""
    with on_fake_device(torch.nn.Identity()) as (device, seen):
        one = torch.ones(3, device=device)
        with pytest.raises(RuntimeError, match="copied from the device to the host"):
            distance(one, one)
        assert seen["float64"] == 0


# Rows end to end.


class Varlen(HFForward):
    """A forward whose attention is taken for one with varlen; transformers finds where texts begin by their positions."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.varlen = True


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama_tied", "qwen3", "mistral_window", "gemma3", "gpt2"])
def test_rows_end_to_end_give_the_same_scores(name, attention, tokenizer, monkeypatch):
    model = tiny_model(name)
    model.set_attn_implementation(attention)
    padded = XentHFLM(pretrained=model, tokenizer=tokenizer, batch_size=64)
    monkeypatch.setattr(hf_lm, "HFForward", Varlen)
    lm = XentHFLM(pretrained=model, tokenizer=tokenizer, batch_size=64)
    assert lm.forward.end_to_end
    shapes, run = [], lm.forward._run
    monkeypatch.setattr(lm.forward, "_run", lambda ids, **more: shapes.append(tuple(ids.shape)) or run(ids, **more))
    lm.logits_cache = False  # so that no row branches
    texts = (TEXT[:90], TEXT[40:60], TEXT[30:100])
    assert rolling(lm, *texts) == pytest.approx(rolling(padded, *texts), rel=1e-5)
    assert shapes == [(1, sum(len(tokenizer.encode(text)) for text in texts))]  # nothing is padded
    lm.logits_cache = True
    found = choices(lm)
    assert [one[0] for one in found] == pytest.approx([one[0] for one in choices(padded)], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["mamba", "recurrent_gemma", "bloom", "opt"])
def test_models_that_read_rows_end_to_end_as_one_text_get_padded_rows(name, dtype, tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(hf_lm, "HFForward", Varlen)
    with caplog.at_level(logging.WARNING, logger="xent_metrics"):
        lm = XentHFLM(pretrained=tiny_model(name).to(dtype), tokenizer=tokenizer, max_length=88)
    assert not lm.forward.end_to_end
    assert "end_to_end is off for" in caplog.text


def test_flash_attention_is_told_where_rows_begin():
    forward = Varlen(tiny_model("llama_tied"), device=CPU)
    forward.end_to_end = True
    rows = [alone(0, Window((5, 6, 7), (6,))), alone(1, Window((8, 9), (1,)))]
    arguments = forward._lengths(rows)
    assert arguments["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert arguments["cu_seq_lens_q"].tolist() == arguments["cu_seq_lens_k"].tolist() == [0, 3, 5]
    assert arguments["cu_seq_lens_q"].dtype == torch.int32
    assert arguments["max_length_q"] == arguments["max_length_k"] == 3
    assert "cu_seq_lens_q" not in forward._arguments(TREES, None)  # rows that branch need a mask


# Batches without branches.


def test_rows_that_do_not_branch_never_get_a_mask(build, monkeypatch):
    """Whatever else is in the run, where a device runs branches apart."""
    lm = build(batch_size=64, logits_cache=True)
    expected = choices(lm)
    lm.forward.costs = Costs(branches_apart=True)
    lm._runner.sharing.longest = lm._runner.sharing.deepest = 10**6  # nothing runs to be compared
    seen, arguments = [], lm.forward._arguments

    def watch(rows, cache):
        found = arguments(rows, cache)
        seen.append(({row.is_chain for row in rows}, "attention_mask" in found))
        return found

    monkeypatch.setattr(lm.forward, "_arguments", watch)
    assert [one[0] for one in choices(lm)] == pytest.approx([one[0] for one in expected], rel=1e-6)
    assert ({True}, False) in seen
    assert ({False}, True) in seen
    assert all(len(kinds) == 1 for kinds, _ in seen)


# Caches.


@pytest.mark.parametrize("name", ["llama_tied", "mistral_window", "gemma3", "gpt2"])
def test_a_prefix_is_neither_copied_nor_changed(name):
    forward = forward_of(tiny_model(name))
    rows = after(40, WINDOWS, packing=False).rows
    for forward.packing in (True, False):  # with our mask, and with the model's own cache, which may slide
        cache = forward.prefix_cache(WINDOWS[0].inputs[:40])
        before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
        views = repeated(cache, 4)
        for layer, view in zip(cache.layers, views.layers, strict=True):
            assert view.keys.data_ptr() == layer.keys.data_ptr()
            assert view.keys.shape == (4, *layer.keys.shape[1:])
        copies = copy.deepcopy(cache)
        copies.batch_repeat_interleave(len(rows))
        found = forward.states(rows, cache)
        for layer, (keys, values) in zip(cache.layers, before, strict=True):
            assert torch.equal(layer.keys, keys)
            assert torch.equal(layer.values, values)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(hf_forward, "repeated", lambda *given, copies=copies: copies)
            assert torch.equal(forward.states(rows, cache), found)


def test_layers_that_write_into_their_tensors_are_copied():
    class Writing(DynamicLayer):
        pass

    cache = DynamicCache()
    cache.update(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 3), 0)
    own = cache.layers[0]
    cache.layers = [Writing()]
    cache.layers[0].__dict__.update(own.__dict__)
    found = repeated(cache, 2).layers[0]
    assert type(found) is Writing
    assert found.keys.data_ptr() != own.keys.data_ptr()
    assert found.keys.shape[0] == 2


# Models in several parts.


def test_a_model_in_several_parts_runs_outside_of_contexts_and_blocks(install, tokenizer):
    model = tiny_model("llama_tied")
    assert not HFForward(model, device=CPU).is_split
    model.set_attn_implementation("flex_attention")
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": "cpu", "lm_head": 0}
    forward = HFForward(model, device=CPU)
    assert forward.is_split
    assert forward.devices == {CPU}
    asked = ModuleType("plugin")
    asked.forward_context = hookimpl(lambda model: pytest.fail("a plugin was asked"))
    install(asked)
    assert not forward.find_context()
    mask = forward._tree(TREES)["attention_mask"]  # blocks would stay on one device
    assert isinstance(mask, torch.Tensor)
    assert mask.dtype == forward.dtype


def test_the_dtype_is_that_of_weights_that_are_not_quantized():
    model = tiny_model("llama_tied")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.model.embed_tokens.weight.data = model.model.embed_tokens.weight.data.to(torch.float8_e4m3fn)
    assert HFForward(model, device=CPU).dtype == torch.bfloat16
