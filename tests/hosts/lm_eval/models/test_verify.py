"""Every architecture gives the same answers as lm-eval's own `hf`, and the shortcuts that don't suit it are off."""

from __future__ import annotations

import logging
import re

import peft
import pytest
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from support.hf_model import (
    CONFIGS,
    SWITCHING,
    TEXT,
    VOCAB,
    choices,
    multiple_choice,
    requests,
    rolling,
    stock,
    switched_off,
    tiny_model,
)

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval import XentHFLM
from xent_metrics.hosts.lm_eval.models.hf_forward import HFForward

#: Shortcuts that don't suit an architecture; the others are on.
OFF = {
    "gpt_neo_local": {"packing"},  # its local attention counts columns, not positions
    "bloom": {"packing"},  # ALiBi takes distances from a 2-D mask
    "mamba": {"packing", "caching"},  # a mask can't select from a recurrent state
    "mpt": {"packing"},  # as bloom's
    "recurrent_gemma": {"packing", "caching"},  # as mamba's
    "qwen3_next": {"packing", "caching"},
    "lora_head": {"hidden"},  # the head is more than its weight
    "prompt_tuning": {"hidden", "packing", "caching"},  # virtual tokens precede every text
}


def adapted(name):
    """A Llama with an adapter that has an effect."""
    config = {
        "lora": lambda: peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]),
        "lora_head": lambda: peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"]),
        "prompt_tuning": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    }[name]()
    model = peft.get_peft_model(tiny_model("llama_untied"), config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(std=0.3)
    return model


@torch.no_grad()
def greedily(model, context):
    """Continuations of one and of four greedily decoded ids, and the four with another last id."""
    ids = list(context)
    for _ in range(4):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    written = ids[len(context) :]
    other = [*written[:-1], (written[-1] + 1) % VOCAB]
    return [(None, context, continuation) for continuation in (written[:1], written, other)]


@pytest.mark.parametrize(
    "name", [name for name in [*CONFIGS, "lora", "lora_head", "prompt_tuning"] if name not in SWITCHING]
)
def test_it_answers_as_hf_does(name, tokenizer, caplog):
    model = tiny_model(name) if name in CONFIGS else adapted(name)
    theirs = stock(model, tokenizer, max_length=88)
    with caplog.at_level(logging.WARNING, logger="xent_metrics"):
        ours = XentHFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=88)
    off = switched_off(ours)
    assert off == OFF.get(name, set())
    said = [record.getMessage() for record in caplog.records if record.name.startswith("xent_metrics")]
    in_order = [shortcut for shortcut in ("hidden", "packing", "caching") if shortcut in off]
    assert [line.split()[1] for line in said] == in_order  # a line each

    pairs = requests("loglikelihood", multiple_choice())
    for expected, found in zip(theirs.loglikelihood(pairs, disable_tqdm=True), ours.loglikelihood(pairs), strict=True):
        assert found[0] == pytest.approx(expected[0], rel=1e-5)
        assert found[1] is expected[1]
        assert (found.scores.nll > 0).all()
    assert switched_off(ours) == off  # on real requests, too

    written = greedily(model, tokenizer.encode(TEXT[:60]))
    for answers in (lm._loglikelihood_tokens(written, disable_tqdm=True) for lm in (theirs, ours)):
        assert [greedy for _, greedy in answers] == [True, True, False]

    texts = requests("loglikelihood_rolling", [(TEXT,), (TEXT[:50],), (TEXT[7:200],)])
    expected = theirs.loglikelihood_rolling(texts, disable_tqdm=True)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(expected, rel=1e-5)


def test_bf16_is_nearer_to_the_truth_than_stock(tokenizer):
    """Probabilities and their sums are float32, so that only the model's own rounding remains."""
    pairs = requests("loglikelihood", [(TEXT[:40], TEXT[40:250])])
    texts = requests("loglikelihood_rolling", [(TEXT[:200],), (TEXT[100:],)])
    errors = {"ours": 0.0, "theirs": 0.0}
    for name in ("llama_tied", "qwen3", "gpt_neox"):
        truth = stock(tiny_model(name), tokenizer)
        half = tiny_model(name).to(torch.bfloat16)
        models = {"ours": XentHFLM(pretrained=half, tokenizer=tokenizer), "theirs": stock(half, tokenizer)}
        exact = [truth.loglikelihood(pairs, disable_tqdm=True)[0][0], *truth.loglikelihood_rolling(texts)]
        for key, lm in models.items():
            found = [lm.loglikelihood(pairs, disable_tqdm=True)[0][0], *lm.loglikelihood_rolling(texts)]
            errors[key] += sum(abs(a - b) / abs(b) for a, b in zip(found, exact, strict=True))
    assert errors["ours"] < errors["theirs"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [0.3, 0.02])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in SWITCHING])
def test_rounding_hides_no_mistake(name, spread, dtype, tokenizer):
    """The same shortcuts are off in float32 and in half precision, where errors of a few percent are common."""
    if (name, spread) == ("gpt_neo_local", 0.02):
        spread = 0.05  # at 0.02 the window changes predictions by a fifth of bfloat16's rounding
    model = tiny_model(name, initializer_range=spread, init_std=spread).to(dtype)
    assert switched_off(XentHFLM(pretrained=model, tokenizer=tokenizer, max_length=88)) == OFF.get(name, set())


@pytest.mark.parametrize("spread", [0.1, 0.3])
def test_rounding_is_measured_whatever_computes_attention(spread, tokenizer):
    """Twenty-four layers round often, and eager attention gives a batch the bits of each row."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=24, num_attention_heads=4,
        max_position_embeddings=128, initializer_range=spread, attn_implementation="eager",
    )  # fmt: skip
    lm = XentHFLM(
        pretrained=transformers.LlamaForCausalLM(config).to(torch.float16), tokenizer=tokenizer, max_length=88
    )
    assert switched_off(lm) == set()
    assert lm.forward.rounding > 5e-4  # half a unit in the last place


@pytest.mark.parametrize("spread", [0.3, 0.02])
def test_a_model_that_leaks_between_branches_is_as_exact_in_bf16_as_without_sharing(spread, tokenizer):
    model = tiny_model("recurrent_gemma", initializer_range=spread).to(torch.bfloat16)
    pairs = requests("loglikelihood", multiple_choice())
    shared, alone = (
        XentHFLM(pretrained=model, tokenizer=tokenizer, max_length=88, logits_cache=share).loglikelihood(pairs)
        for share in (True, False)
    )
    assert [a == pytest.approx(b, abs=0.02) for a, b in zip(shared, alone, strict=True)] == [True] * len(pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_wrong_head_is_found(model, tokenizer, caplog, dtype):
    """Logits with a factor that isn't in the configuration."""

    class Shifted(transformers.LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 1.01
            return output

    shifted = Shifted(model.config).eval()
    shifted.load_state_dict(model.state_dict())
    shifted.to(dtype)
    with caplog.at_level(logging.WARNING, logger="xent_metrics"):
        lm = XentHFLM(pretrained=shifted, tokenizer=tokenizer)
    assert not lm.forward.hidden
    assert lm.forward.packing
    assert "hidden is off for Shifted" in caplog.text
    near = 1e-5 if dtype == torch.float32 else 2e-2
    assert rolling(lm, TEXT) == pytest.approx(rolling(stock(shifted, tokenizer), TEXT), rel=near)
    for one, two in zip(choices(stock(shifted, tokenizer)), choices(lm), strict=True):
        assert two[0] == pytest.approx(one[0], rel=near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["Bert", "Roberta", "XLNet"])
def test_models_that_look_ahead_are_refused(tokenizer, name, dtype):
    """Even if they look ahead less than the dtype rounds, as with freshly drawn weights."""
    sizes = {"d_model": 48, "n_layer": 2, "n_head": 4, "d_inner": 48, "d_head": 12}
    if name != "XLNet":
        sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        sizes |= {"max_position_embeddings": 100}
    config = getattr(transformers, f"{name}Config")(vocab_size=VOCAB, pad_token_id=0, **sizes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with pytest.raises(InvalidInputError, match=rf"{name}\w+ isn't causal"):
        XentHFLM(pretrained=model, tokenizer=tokenizer, max_length=88)


def test_rounding_is_not_taken_for_looking_ahead(tokenizer):
    """An id may be rounded differently if other ids go to the same expert."""
    half = tiny_model("mixtral").to(torch.bfloat16)
    states = HFForward.states

    def rounded(self, rows, cache=None):
        found = states(self, rows, cache)
        return found * (1 + 1e-3 * (rows[0].tokens[-1] % 7))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(HFForward, "states", rounded)
        XentHFLM(pretrained=half, tokenizer=tokenizer)


def test_a_dynamically_quantized_model_is_scored_plainly(tokenizer):
    """Its layers scale by the largest number of a batch, so no shortcut agrees closely enough."""
    model = tiny_model("llama_untied")
    model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    lm, theirs = (kind(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=88) for kind in (XentHFLM, HFLM))
    assert not any((lm.forward.hidden, lm.forward.packing, lm.forward.caching))
    [ours], [expected] = choices(lm, multiple_choice()[:1]), choices(theirs, multiple_choice()[:1])
    assert ours[0] == pytest.approx(expected[0], rel=1e-5)


def test_the_log_says_how_far_a_batch_moves_a_token(build, caplog):
    with caplog.at_level(logging.INFO, logger="xent_metrics"):
        assert build().forward  # checked on first use
    (found,) = re.findall(r"the nll of a token moves by up to (\S+) nats", caplog.text)
    assert 0 <= float(found) < 1e-4


def test_a_few_short_forwards_are_enough(build, monkeypatch):
    """Whoever scores ten documents waits for them, too."""
    sizes, run = [], HFForward._run

    def counted(self, ids, **more):
        sizes.append(ids.numel())
        return run(self, ids, **more)

    monkeypatch.setattr(HFForward, "_run", counted)
    lm = build()
    assert lm.forward  # checked on first use
    with_plugin = 1000 if lm.forward.context_on else 0
    assert 10 <= len(sizes) <= 20
    assert 300 <= sum(sizes) <= 600 + with_plugin
