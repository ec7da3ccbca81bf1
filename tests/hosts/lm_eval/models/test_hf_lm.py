"""XentHFLM's arguments: those of `hf`, its own, and those that it refuses."""

from __future__ import annotations

import re

import peft
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from support.hf_model import (
    TEXT,
    VOCAB,
    choices,
    multiple_choice,
    rolling,
    stock,
    tiny_model,
)

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval import XentHFLM
from xent_metrics.hosts.lm_eval.models.hf_forward import HFForward

PAIRS = multiple_choice()


@pytest.mark.parametrize("batch_size", [1, 3, 64, "auto", "auto:3"])
def test_any_batch_size_gives_the_same(build, lm, batch_size):
    other = build(batch_size=batch_size, max_batch_size=8)
    for one, two in zip(choices(lm), choices(other), strict=True):
        assert two[0] == pytest.approx(one[0], rel=1e-6)
        assert two[1] is one[1]
    assert rolling(other, TEXT, TEXT[:30]) == pytest.approx(rolling(lm, TEXT, TEXT[:30]), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "free", "tokens"),
    [
        ({}, 2**27, "fit"),  # 1, lm-eval's own default, leaves it to us
        ({"batch_size": 3}, 2**27, 3 * 40),
        ({"batch_size": "auto", "max_batch_size": 7}, 2**27, 7 * 40),
        ({"batch_size": "auto", "max_batch_size": 10**6}, 2**27, "fit"),
        ({"batch_size": 1}, None, 40),
        ({"batch_size": "auto", "max_batch_size": 7}, None, 7 * 40),
    ],
)
def test_a_gpu_s_batches_follow_its_free_memory(build, monkeypatch, options, free, tokens):
    lm = build(**{"batch_size": 1} | options)
    monkeypatch.setattr(XentHFLM, "device", torch.device("cuda", 0))
    monkeypatch.setattr(HFForward, "devices", {torch.device("cuda", 0)})
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    if free is None:
        monkeypatch.delattr(torch.cuda, "mem_get_info")
    else:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    fit = lm.forward.ids_that_fit(40)
    assert lm._batch_tokens(40, None) == (fit if tokens == "fit" else tokens)
    if free is not None:
        assert 1000 < fit < 2**16


def test_what_results_depend_on(build, tokenizer, tmp_path):
    """Options, and the content of a folder whatever its name."""
    plain = build().made_by()
    assert build().made_by() == plain
    choices(lm := build())
    assert lm.made_by() == plain  # a forward doesn't make another model of it
    assert lm.config is lm.model.config  # as `hf` has it
    for name, options in (("softmax_dtype", {"softmax_dtype": "float64"}), ("stride", {"stride": 5})):
        assert {key for key, value in build(**options).made_by().items() if value != plain[key]} == {name}

    def loaded(change, **options):
        model = tiny_model("llama_untied")
        change(model.config)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return XentHFLM(pretrained=str(tmp_path), device="cpu", dtype="float32", **options).made_by()

    def differences(other):
        return {key for key, value in other.items() if value != of_folder[key]}

    of_folder = loaded(lambda config: None)
    assert not differences(loaded(lambda config: None))
    assert differences(loaded(lambda config: setattr(config, "rms_norm_eps", 1e-3))) == {"config"}
    assert differences(loaded(lambda config: None, attn_implementation="eager")) == {"attention"}


def test_an_adapter_of_other_options_is_another_model(model, tokenizer, tmp_path):
    keys = []
    for alpha in (1, 64, 1):
        adapted = peft.get_peft_model(
            tiny_model("llama_untied"), peft.LoraConfig(r=2, lora_alpha=alpha, target_modules=["q_proj"])
        )
        keys.append(XentHFLM(pretrained=adapted, tokenizer=tokenizer, device="cpu").made_by()["config"])
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize("options", [{"add_bos_token": True}, {"prefix_token_id": 7}, {"max_length": 30}])
def test_hf_s_arguments_mean_what_they_mean_there(build, model, tokenizer, options):
    theirs, ours = stock(model, tokenizer, **options), build(**options)
    for one, two in zip(choices(theirs), choices(ours), strict=True):
        assert two[0] == pytest.approx(one[0], rel=1e-5)
    assert rolling(ours, TEXT, "") == pytest.approx(rolling(theirs, TEXT, ""), rel=1e-5)


def test_models_load_from_a_folder_with_adapter_and_delta(model, tokenizer, tmp_path, lm):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    loaded = XentHFLM(pretrained=str(tmp_path / "model"), device="cpu", dtype="float32", batch_size="2")
    assert [one[0] for one in choices(loaded)] == pytest.approx([one[0] for one in choices(lm)], rel=1e-6)
    doubled = XentHFLM(pretrained=str(tmp_path / "model"), delta=str(tmp_path / "model"), device="cpu", dtype="float32")
    theirs = stock(doubled.model, tokenizer)
    assert rolling(doubled, TEXT) == pytest.approx(rolling(theirs, TEXT), rel=1e-5)

    adapter = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    peft.get_peft_model(tiny_model("llama_tied"), adapter).save_pretrained(tmp_path / "adapter")
    options = {
        "pretrained": str(tmp_path / "model"), "peft": str(tmp_path / "adapter"), "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    adapted, theirs = XentHFLM(**options), HFLM(**options)
    assert adapted.forward.hidden
    assert rolling(adapted, TEXT) == pytest.approx(rolling(theirs, TEXT), rel=1e-5)
    assert rolling(adapted, TEXT) != pytest.approx(rolling(lm, TEXT), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length is a whole number of at least 1; got 0"),
        ({"prefix_token_id": 9999}, f"prefix_token_id is one of the model's {VOCAB} ids, 0 to {VOCAB - 1}; got 9999"),
        ({"max_length": -1}, "max_length is a whole number of at least 1; got -1"),
        ({"max_length": "long"}, "max_length is a whole number of at least 1; got 'long'"),
        ({"batch_size": 0}, "batch_size is a whole number of at least 1; got 0"),
        ({"batch_size": -2}, "batch_size is a whole number of at least 1; got -2"),
        ({"batch_size": "auto", "max_batch_size": None}, "max_batch_size is a whole number of at least 1; got None"),
        ({"log_tokens": "no"}, "log_tokens is true, false or parquet; got 'no'"),
        ({"backend": "seq2seq"}, "causal language models; got backend='seq2seq' for llama. Leave backend out"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(build, options, message):
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        build(**options)


def test_a_misspelt_argument_and_a_missing_folder_are_named(build, tokenizer, tmp_path):
    with pytest.raises(InvalidInputError, match=r"xent-hf has no argument 'log_token'; did you mean 'log_tokens'\?"):
        build(log_token=True)
    with pytest.raises(InvalidInputError, match=r"nowhere' can't be loaded: "):
        XentHFLM(pretrained=str(tmp_path / "nowhere"), tokenizer=tokenizer)


def test_a_max_length_may_be_text(build):
    assert build(max_length="24").max_length == 24
