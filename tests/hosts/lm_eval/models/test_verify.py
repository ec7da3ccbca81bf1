"""Every architecture beside lm-eval's own `hf`: the same answers, by which shortcuts."""

from __future__ import annotations

import logging

import peft
import pytest
import torch
from support.hf_model import CONFIGS, TEXT, VOCAB, multiple_choice, requests, stock, tiny_model, tiny_tokenizer

from xent_metrics.hosts.lm_eval import XentHFLM

#: What does not fit an architecture, and is found out: everything else is on.
OFF = {
    "gpt_neo_local": {"packing"},  # its local attention counts columns, not positions
    "bloom": {"packing"},  # ALiBi takes distances from a 2-D mask
    "mamba": {"packing", "caching"},  # a state is no set of keys that a mask could choose from
    "mpt": {"packing"},  # as bloom's
    "recurrent_gemma": {"packing", "caching"},  # as mamba's
    "qwen3_next": {"packing", "caching"},
    "lora_head": {"hidden"},  # the head is more than its weight
    "prompt_tuning": {"hidden", "packing", "caching"},  # virtual tokens stand before every text
}
SHORTCUTS = ("hidden", "packing", "caching")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def adapted(name):
    """A Llama with an adapter whose weights are not zero."""
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
    """One id and four that the model itself would write, and the four with another last one."""
    ids = list(context)
    for _ in range(4):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    written = ids[len(context) :]
    other = [*written[:-1], (written[-1] + 1) % VOCAB]
    return [(None, context, continuation) for continuation in (written[:1], written, other)]


#: Whose frequencies depend on the longest text of a batch, and so `hf`'s answers on the batch.
TURNING = ["phi3_longrope", "llama_dynamic"]


def switched_off(lm):
    return {shortcut for shortcut in SHORTCUTS if not getattr(lm.forward, shortcut)}


@pytest.mark.parametrize(
    "name", [name for name in [*CONFIGS, "lora", "lora_head", "prompt_tuning"] if name not in TURNING]
)
def test_it_answers_as_hf_does(name, tokenizer, caplog):
    model = tiny_model(name) if name in CONFIGS else adapted(name)
    theirs = stock(model, tokenizer, max_length=88)
    with caplog.at_level(logging.WARNING, logger="xent_metrics"):
        ours = XentHFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=88)
    off = switched_off(ours)
    assert off == OFF.get(name, set())
    said = [record.getMessage() for record in caplog.records if record.name.startswith("xent_metrics")]
    assert [line.split()[1] for line in said] == [shortcut for shortcut in SHORTCUTS if shortcut in off]  # a line each

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
    """Sums in float32 of probabilities in float32; what remains is the model's own rounding."""
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
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in TURNING])
def test_rounding_hides_no_mistake(name, spread, dtype, tokenizer):
    """What is off in float32 is off in half precision, where errors of a few percent are common; and no more is."""
    if (name, spread) == ("gpt_neo_local", 0.02):
        spread = 0.05  # at 0.02 the window moves what is predicted by a fifth of what bfloat16 rounds off
    model = tiny_model(name, initializer_range=spread, init_std=spread).to(dtype)
    assert switched_off(XentHFLM(pretrained=model, tokenizer=tokenizer, max_length=88)) == OFF.get(name, set())


@pytest.mark.parametrize("spread", [0.3, 0.02])
def test_a_model_that_leaks_between_branches_is_as_exact_in_bf16_as_without_sharing(spread, tokenizer):
    model = tiny_model("recurrent_gemma", initializer_range=spread).to(torch.bfloat16)
    pairs = requests("loglikelihood", multiple_choice())
    shared, alone = (
        XentHFLM(pretrained=model, tokenizer=tokenizer, max_length=88, logits_cache=share).loglikelihood(pairs)
        for share in (True, False)
    )
    assert [a == pytest.approx(b, abs=0.02) for a, b in zip(shared, alone, strict=True)] == [True] * len(pairs)


@pytest.mark.parametrize("name", TURNING)
def test_each_text_has_the_positions_that_it_has_alone(name, tokenizer):
    """Contexts and choices on both sides of the length at which the frequencies turn."""
    lengths = (40, 100, 120, 160, 300)
    choices = (" the", " the loss", " a model that counts alike by everyone and is longer than the others", " Größe")
    pairs = requests("loglikelihood", [(TEXT[:length], choice) for length in lengths for choice in choices])
    sizes = [len(tokenizer.encode("".join(pair.args))) for pair in pairs]
    assert min(sizes) < 40 < 48 < max(sizes)
    ours = XentHFLM(pretrained=tiny_model(name), tokenizer=tokenizer, batch_size=8, max_length=88)
    assert switched_off(ours) == set()
    found = ours.loglikelihood(pairs)
    assert switched_off(ours) == set()
    for pair, result in zip(pairs, found, strict=True):
        alone = stock(
            tiny_model(name), tokenizer, max_length=88
        )  # a new one: some keep the frequencies of the longest text
        assert result[0] == pytest.approx(alone.loglikelihood([pair], disable_tqdm=True)[0][0], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite"])
def test_a_cap_and_a_scale_of_large_logits_agree_in_any_dtype(name, dtype, tokenizer):
    model = tiny_model(name, final_logit_softcapping=30.0)
    ids = torch.arange(1, 41)[None]
    with torch.no_grad():
        head = model.get_output_embeddings()
        spread = model(ids).logits.std()
        head.weight = torch.nn.Parameter(head.weight * (16 / spread))
    lm = XentHFLM(pretrained=model.to(dtype), tokenizer=tokenizer, max_length=88)
    assert lm.forward.hidden
