"""XentHFLM's own arguments, its results and what it refuses."""

from __future__ import annotations

import io
import json
import logging
import math
import pickle
import re
import resource
from pathlib import Path

import peft
import pytest
import torch
import transformers
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from support.hf_model import CONFIGS, TEXT, VOCAB, multiple_choice, requests, stock, tiny_model, tiny_tokenizer
from torch.nn import functional as F

from xent_metrics import TokenScores
from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval import XentHFLM
from xent_metrics.hosts.lm_eval.models import freed_memory, runner
from xent_metrics.hosts.lm_eval.models import hf_lm as hf_model
from xent_metrics.hosts.lm_eval.models.forward import Forward
from xent_metrics.hosts.lm_eval.models.results import ScoredLoglikelihood, ScoredRolling

PAIRS = multiple_choice()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama_tied")


@pytest.fixture(scope="module")
def build(model, tokenizer):
    return lambda **options: XentHFLM(**({"pretrained": model, "tokenizer": tokenizer, "batch_size": 4} | options))


@pytest.fixture(scope="module")
def lm(build):
    return build()


def choices(lm, pairs=PAIRS):
    return lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)


def rolling(lm, *texts):
    return lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in texts]), disable_tqdm=True)


# Results.


def test_results_are_plain_values_with_scores(lm, model, tokenizer):
    result = choices(lm, [(TEXT[:40], TEXT[40:60])])[0]
    assert isinstance(result, ScoredLoglikelihood)
    loglikelihood, greedy = result
    assert type(loglikelihood) is float
    assert greedy is False
    context = tokenizer.encode(TEXT[:40])
    whole = tokenizer.encode(TEXT[:60])
    logits = model(torch.tensor([whole])).logits[0, len(context) - 1 : -1]
    target = torch.tensor(whole[len(context) :])
    scores = result.scores
    torch.testing.assert_close(scores.nll, F.cross_entropy(logits, target, reduction="none"))
    assert torch.equal(scores.target, target)
    assert torch.equal(scores.correct, logits.argmax(-1) == target)
    torch.testing.assert_close(scores.confidence, logits.softmax(-1).amax(-1))
    assert int(scores.num_bytes.sum()) == len(TEXT[40:60].encode())
    assert scores.vocab_size == VOCAB


def test_a_rolled_text_has_every_token_in_order(lm, tokenizer):
    [result] = rolling(lm, TEXT)
    ids = tokenizer.encode(TEXT)
    assert len(ids) > lm.max_length  # several windows
    assert isinstance(result, ScoredRolling)
    assert result.scores.target.tolist() == ids
    assert int(result.scores.num_bytes.sum()) == len(TEXT.encode())
    assert result == pytest.approx(-float(result.scores.nll.double().sum()), rel=1e-12)


def test_an_empty_text_costs_nothing(lm):
    empty, other = rolling(lm, "", TEXT[:20])
    assert empty == 0.0
    assert len(empty.scores) == 0
    assert other < 0


def test_a_tokenizer_that_cannot_be_counted_gives_scores_without_bytes(build, tokenizer, monkeypatch):
    from xent_metrics.errors import TokenBytesError
    from xent_metrics.hosts.lm_eval.models import tokenizers as encoding

    def refuse(*args, **kwargs):
        raise TokenBytesError("unknown")

    monkeypatch.setattr(encoding, "token_bytes", refuse)
    [result] = rolling(build(), TEXT[:50])
    assert result.scores.num_bytes is None
    assert result.scores.target is not None


def test_results_pickle_alone(lm):
    """One choice's scores, not the batch that they were computed in."""
    results = choices(lm)
    tensors = [tensor for result in results for tensor in result.scores.fields().values()]
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors)
    again = pickle.loads(pickle.dumps(results[0]))
    assert again == results[0]
    assert torch.equal(again.scores.nll, results[0].scores.nll)


# Only what is scored.


def test_no_logits_of_a_whole_batch_are_made(lm, monkeypatch):
    """The head is never called, and what is scored is the continuations' positions, once for each."""
    seen = []
    score = lm.forward.score

    def watch(states, targets):
        seen.append(tuple(states.shape))
        return score(states, targets)

    def refuse(*args, **kwargs):
        raise AssertionError("lm_head ran on all positions")

    monkeypatch.setattr(lm.forward, "score", watch)
    monkeypatch.setattr(lm.model.lm_head, "forward", refuse)
    results = choices(lm)
    assert sum(rows for rows, _ in seen) == sum(len(result.scores) for result in results)
    assert {width for _, width in seen} == {lm.model.config.hidden_size}


def test_contexts_run_once(lm, monkeypatch):
    run = []
    states = lm.forward.states

    def watch(rows, stem=None):
        run.append(sum(map(len, rows)))
        return states(rows, stem)

    monkeypatch.setattr(lm.forward, "states", watch)
    lm._runner.longest = lm._runner.deepest = 10**6  # nothing runs to be compared
    choices(lm)
    shared = sum(run)
    monkeypatch.setattr(lm, "logits_cache", False)
    run.clear()
    choices(lm)
    assert shared < 0.35 * sum(run)


# Arguments.


@pytest.mark.parametrize("batch_size", [1, 3, 64, "auto", "auto:3"])
def test_any_batch_size_gives_the_same(build, lm, batch_size):
    other = build(batch_size=batch_size, max_batch_size=8)
    for one, two in zip(choices(lm), choices(other), strict=True):
        assert two[0] == pytest.approx(one[0], rel=1e-6)
        assert two[1] is one[1]
    assert rolling(other, TEXT, TEXT[:30]) == pytest.approx(rolling(lm, TEXT, TEXT[:30]), rel=1e-6)


def test_auto_lowers_the_batch_until_it_fits(build, monkeypatch):
    lm = build(batch_size="auto", max_batch_size=7)
    states, tried = lm.forward.states, []

    def small_memory(rows, stem=None):
        tried.append(len(rows))
        if len(rows) > 5:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return states(rows, stem)

    monkeypatch.setattr(lm.forward, "states", small_memory)
    assert lm._largest_batch(40) == 5
    assert tried == [7, 6, 5]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("MPS backend out of memory")]
)
def test_a_batch_that_does_not_fit_runs_in_halves(build, lm, monkeypatch, caplog, error):
    other = build(batch_size=64)
    states, run = other.forward.states, []

    def small_memory(rows, stem=None):
        run.append(len(rows) * max(map(len, rows)))
        if run[-1] > 150:
            raise error
        return states(rows, stem)

    monkeypatch.setattr(other.forward, "states", small_memory)
    with caplog.at_level(logging.WARNING, logger="xent_metrics"):
        found = choices(other)
    assert max(run) > 150
    assert "out of memory; batches have at most" in caplog.text
    assert [one[0] for one in found] == pytest.approx([one[0] for one in choices(lm)], rel=1e-6)


def test_a_request_that_never_fits_is_an_error(build, monkeypatch, caplog):
    lm = build(batch_size=64)

    def no_memory(rows, stem=None):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(lm.forward, "states", no_memory)
    with caplog.at_level(logging.WARNING, logger="xent_metrics"), pytest.raises(torch.OutOfMemoryError):
        choices(lm)
    assert "nothing is shared from here on" in caplog.text


def test_a_batch_size_bounds_the_tokens_of_a_batch(build, monkeypatch):
    monkeypatch.setattr(hf_model, "_CPU_TOKENS", 10**6)
    lm = build(batch_size=2, logits_cache=False)
    states, run = lm.forward.states, []

    def watch(rows, stem=None):
        run.append(len(rows) * max(map(len, rows)))
        return states(rows, stem)

    monkeypatch.setattr(lm.forward, "states", watch)
    rolling(lm, TEXT, *(TEXT[:n] for n in (10, 20, 30, 40, 50)))
    assert max(run) == 2 * lm.max_length
    assert len(run) < 4  # short texts fill up a batch


@pytest.mark.parametrize("stride", [1, 7, 24])
def test_stride_scores_each_token_once_with_more_context(build, model, tokenizer, stride):
    lm = build(max_length=24, stride=stride)
    [result] = rolling(lm, TEXT[:160])
    ids = tokenizer.encode(TEXT[:160])
    whole = [0, *ids]
    expected, start, end = [], 0, min(24, len(ids))
    while start < len(ids):  # ids start … end−1 are new; each is predicted within the last 24 inputs
        inputs = whole[max(0, end - 24) : end]
        log_prob = model(torch.tensor([inputs])).logits[0].log_softmax(-1)
        fresh = torch.tensor(ids[start:end])
        expected.append(-log_prob[-len(fresh) :].gather(-1, fresh[:, None]).squeeze(-1))
        start, end = end, min(end + stride, len(ids))
    torch.testing.assert_close(result.scores.nll, torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert result.scores.target.tolist() == ids


def test_without_stride_windows_are_lm_evals(build, model, tokenizer):
    theirs = rolling(stock(model, tokenizer, max_length=24), TEXT)
    assert rolling(build(max_length=24), TEXT) == pytest.approx(theirs, rel=1e-6)
    assert rolling(build(max_length=24, stride=24), TEXT) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("options", [{"add_bos_token": True}, {"prefix_token_id": 7}, {"max_length": 30}])
def test_hf_s_arguments_mean_what_they_mean_there(build, model, tokenizer, options):
    theirs, ours = stock(model, tokenizer, **options), build(**options)
    for one, two in zip(choices(theirs), choices(ours), strict=True):
        assert two[0] == pytest.approx(one[0], rel=1e-5)
    assert rolling(ours, TEXT, "") == pytest.approx(rolling(theirs, TEXT, ""), rel=1e-5)


def test_softmax_dtype_can_only_widen(build):
    [plain], [half], [wide] = (rolling(build(softmax_dtype=dtype), TEXT) for dtype in (None, "bfloat16", "float64"))
    assert plain.scores.nll.dtype == half.scores.nll.dtype == torch.float32
    assert wide.scores.nll.dtype == torch.float64
    assert plain == half == pytest.approx(wide, rel=1e-6)


def test_mixed_precision_runs_the_body_in_half(build, lm):
    mixed = build(mixed_precision_dtype="bfloat16")
    [half], [full] = rolling(mixed, TEXT), rolling(lm, TEXT)
    assert half != full
    assert half == pytest.approx(full, rel=0.02)
    assert half.scores.nll.dtype == torch.float32
    assert mixed.forward.packing


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


# Caches and samples.


def test_the_cache_keeps_scores(build, tmp_path, monkeypatch):
    lm = build()
    cached = CachingLM(lm, str(tmp_path / "cache.db"))
    pairs = requests("loglikelihood", PAIRS)
    texts = requests("loglikelihood_rolling", [(TEXT,), ("",)])
    first = cached.loglikelihood(pairs), cached.loglikelihood_rolling(texts)

    def refuse(*args, **kwargs):
        raise AssertionError("the model ran")

    monkeypatch.setattr(lm.forward, "states", refuse)
    again = cached.loglikelihood(pairs), cached.loglikelihood_rolling(texts)
    assert again == first
    for one, two in zip(first[0] + first[1], again[0] + again[1], strict=True):
        assert torch.equal(one.scores.nll, two.scores.nll)


def test_what_is_done_is_cached_before_all_is_done(build, tmp_path, monkeypatch):
    lm = build(batch_size=1)
    monkeypatch.setattr(hf_model, "_CPU_TOKENS", 1)
    cached = CachingLM(lm, str(tmp_path / "cache.db"))
    states, calls = lm.forward.states, []

    def fails_later(rows, stem=None):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return states(rows, stem)

    monkeypatch.setattr(lm.forward, "states", fails_later)
    with pytest.raises(KeyboardInterrupt):
        cached.loglikelihood_rolling(requests("loglikelihood_rolling", [(TEXT,), (TEXT[:90],), (TEXT[:30],), ("a",)]))
    assert len(cached.dbdict) > 0


@pytest.mark.parametrize("kind", ["loglikelihood", "loglikelihood_rolling"])
def test_a_cache_without_tokens_is_refused_where_they_are_asked_for(build, tmp_path, kind):
    path = str(tmp_path / "cache.db")
    first = CachingLM(build(), path)
    getattr(first, kind)(requests(kind, [("A text", " and more")[: 1 + (kind == "loglikelihood")]]))
    first.dbdict.close()
    with pytest.raises(InvalidInputError, match=r"the cache \S+cache.db holds results without tokens.* --use_cache"):
        CachingLM(build(log_tokens=True), path)
    CachingLM(build(), path)  # numbers are what they are


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"stride": 24}, "of stride=None, and this is stride=24"),
        ({"max_length": 50}, "of max_length=96, and this is max_length=50"),
        ({"prefix_token_id": 7}, "of prefix_token_id=0, and this is prefix_token_id=7"),
        ({"pretrained": "mamba"}, "of class=LlamaForCausalLM, .*and this is class=MambaForCausalLM"),
    ],
)
def test_a_cache_of_another_model_or_other_options_is_refused(build, tmp_path, other, message):
    """lm-eval knows requests by their texts alone."""
    path = str(tmp_path / "cache.db")
    first = CachingLM(build(), path)
    first.loglikelihood_rolling(requests("loglikelihood_rolling", [(TEXT,)]))
    first.dbdict.close()
    if "pretrained" in other:
        other = {"pretrained": tiny_model(other["pretrained"]), "max_length": 96}
    with pytest.raises(InvalidInputError, match=f"the cache .*cache.db holds results {message}.*; give --use_cache"):
        CachingLM(build(**other), path)
    CachingLM(build(batch_size=1), path)  # changes no result


def test_a_cache_that_does_not_say_whose_it_is_is_refused(build, model, tokenizer, tmp_path):
    path = str(tmp_path / "cache.db")
    first = CachingLM(stock(model, tokenizer), path)
    first.loglikelihood(requests("loglikelihood", PAIRS))
    first.dbdict.close()
    with pytest.raises(
        InvalidInputError, match="holds results of another model: it doesn't say which; give --use_cache"
    ):
        CachingLM(build(), path)


def test_a_cache_with_tokens_is_taken(build, tmp_path):
    path = str(tmp_path / "cache.db")
    pairs, texts = requests("loglikelihood", PAIRS), requests("loglikelihood_rolling", [(TEXT,)])
    first = CachingLM(build(log_tokens=True), path)
    found = first.loglikelihood(pairs), first.loglikelihood_rolling(texts)
    first.dbdict.close()
    again = CachingLM(build(log_tokens=True), path)
    assert (again.loglikelihood(pairs), again.loglikelihood_rolling(texts)) == found


def test_samples_list_tokens_when_asked(build, lm, tokenizer):
    from lm_eval.utils import sanitize_list

    logged = build(log_tokens=True)
    pair = (TEXT[:40], " «Größe» 四")
    result, plain = choices(logged, [pair])[0], choices(lm, [pair])[0]
    assert result == plain
    first, greedy = sanitize_list([[result]])[0][0]  # what lm-eval writes
    sample = json.loads(first)
    assert (sample["loglikelihood"], greedy) == (plain[0], str(plain[1]))
    tokens = sample["tokens"]
    assert "".join(token["text"] for token in tokens) == pair[1]
    assert [token["id"] for token in tokens] == plain.scores.target.tolist()
    assert [token["nll"] for token in tokens] == plain.scores.nll.tolist()
    assert sum(token["num_bytes"] for token in tokens) == len(pair[1].encode())
    for token in tokens:
        texts, probabilities = zip(*token["alternatives"], strict=True)
        assert len(texts) == 5
        assert list(probabilities) == sorted(probabilities, reverse=True)
        if (share := math.exp(-token["nll"])) > probabilities[-1] and token["text"]:
            assert (token["text"], round(share, 4)) in [(t, round(p, 4)) for t, p in token["alternatives"]]

    [rolled] = rolling(logged, TEXT)
    sample = json.loads(sanitize_list([[rolled]])[0][0])
    assert "".join(token["text"] for token in sample["tokens"]) == TEXT
    assert rolled == rolling(lm, TEXT)[0]
    for value in (result, rolled):
        again = pickle.loads(pickle.dumps(value))
        assert again == value
        assert str(again) == str(value)


def test_samples_stay_numbers_when_not_asked(lm):
    assert re.fullmatch(r"-\d+\.\d+", str(choices(lm)[0][0]))
    assert re.fullmatch(r"-\d+\.\d+", str(rolling(lm, TEXT)[0]))


# Checked while it runs.


def test_sharing_that_goes_wrong_on_long_texts_is_found_and_left(build, caplog, monkeypatch):
    """Masks that hide what is far away, which the short windows of the probe don't feel."""
    expected = choices(build(logits_cache=False))
    lm = build()
    tree = type(lm.forward)._tree

    def near(self, rows, length):
        arguments = tree(self, rows, length)
        columns = torch.arange(length)
        close = (columns[:, None] - columns[None, :]).abs() < 60
        arguments["attention_mask"] = arguments["attention_mask"] & close
        return arguments

    monkeypatch.setattr(type(lm.forward), "_tree", near)
    assert lm.forward.packing
    with caplog.at_level(logging.WARNING, logger="xent_metrics"):
        found = choices(lm)
    assert not lm.forward.packing
    assert not lm.forward.caching
    [said] = [record.getMessage() for record in caplog.records if record.name.startswith("xent_metrics")]
    assert said.startswith("xent-hf: sharing is off for LlamaForCausalLM")
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], rel=1e-6)


def test_deep_windows_are_checked_behind_wide_rows(tokenizer, caplog):
    """A window that only texts of more than 60 ids feel, hidden from shared rows; long but shallow rows come first."""
    config, options = transformers.MistralConfig, CONFIGS["mistral_window"][1] | {"max_position_embeddings": 512}
    torch.manual_seed(0)
    model = transformers.MistralForCausalLM(config(vocab_size=VOCAB, **options | {"sliding_window": 260})).eval()
    lm = XentHFLM(pretrained=model, tokenizer=tokenizer)
    assert lm.forward.packing
    lm.forward.window = None  # and so out of the block mask
    ids = torch.randint(1, VOCAB, (4096,), generator=torch.Generator().manual_seed(0)).tolist()
    wide = [(None, ids[:20], ids[i : i + 12]) for i in range(20, 500, 12)]
    deep = [(None, ids[start : start + 300], ids[i : i + 3]) for start in (600, 1200) for i in range(2000, 2012, 3)]
    with caplog.at_level(logging.WARNING, logger="xent_metrics"):
        found = lm._loglikelihood_tokens([*wide, *deep])
    expected = stock(model, tokenizer)._loglikelihood_tokens([*wide, *deep], disable_tqdm=True)
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], rel=1e-5)
    assert caplog.text.count("sharing is off for MistralForCausalLM") == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_wrong_head_is_found(model, tokenizer, caplog, dtype):
    """Logits that the configuration doesn't tell of."""

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


# Bad input.


def test_a_continuation_without_tokens_is_refused(lm):
    for pair in (("A context", ""), ("", ""), ("", "<|end|>")):
        behind = "" if pair[0] else " behind the id 0 that begins a text"
        with pytest.raises(InvalidInputError, match=rf"has 0 tokens{behind}; expected 1 to max_length=96"):
            choices(lm, [PAIRS[0], pair])


def test_a_continuation_longer_than_the_window_is_refused_before_anything_runs(lm, monkeypatch):
    monkeypatch.setattr(lm.forward, "states", lambda *args: pytest.fail("the model ran"))
    with pytest.raises(
        InvalidInputError, match=r"'The loss of a language mo … .* has \d+ tokens.*loglikelihood_rolling"
    ):
        choices(lm, [PAIRS[0], ("A", TEXT)])


def test_a_context_that_does_not_fit_is_cut_on_the_left(lm, model, tokenizer, caplog):
    pair = (TEXT * 2, " the end")
    with caplog.at_level(logging.WARNING, logger="xent_metrics"):
        found = choices(lm, [pair])
    assert "1 requests are cut on the left" in caplog.text
    assert found[0][0] == pytest.approx(choices(stock(model, tokenizer), [pair])[0][0], rel=1e-5)


def test_a_context_of_spaces_is_an_empty_one(lm, model, tokenizer):
    [spaces], [empty] = choices(lm, [("  ", "The loss")]), choices(lm, [("", "  The loss")])
    assert spaces[0] == pytest.approx(empty[0], rel=1e-6)


def test_without_bos_and_eos_only_texts_without_context_need_a_prefix(model):
    bare = tiny_tokenizer(bos_token=None, eos_token=None)
    lm = XentHFLM(pretrained=model, tokenizer=bare)
    assert choices(lm, PAIRS[:2])[0][0] < 0
    for run in (lambda: choices(lm, [("", "Bytes")]), lambda: rolling(lm, TEXT)):
        with pytest.raises(InvalidInputError, match=r"^TokenizersBackend has no BOS and no EOS token.*prefix_token_id"):
            run()
    assert rolling(XentHFLM(pretrained=model, tokenizer=bare, prefix_token_id=0), TEXT)[0] < 0


def test_encoder_decoders_are_refused(tokenizer):
    config = transformers.T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(InvalidInputError, match=r"t5 is an encoder-decoder\. Use `--model hf`"):
        XentHFLM(pretrained=transformers.T5ForConditionalGeneration(config), tokenizer=tokenizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["Bert", "Roberta", "XLNet"])
def test_models_that_look_ahead_are_refused(tokenizer, name, dtype):
    """However little: weights as they are drawn, in a dtype whose rounding is greater."""
    own = (
        {"d_inner": 48, "d_head": 12} if name == "XLNet" else {"intermediate_size": 48, "max_position_embeddings": 100}
    )
    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0, **own
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with pytest.raises(InvalidInputError, match=rf"{name}\w+ isn't causal"):
        XentHFLM(pretrained=model, tokenizer=tokenizer, max_length=88)


def test_rounding_is_not_taken_for_looking_ahead(tokenizer):
    """Where other ids go to an expert, the same ids may be rounded otherwise."""
    half = tiny_model("mixtral").to(torch.bfloat16)
    states = Forward.states

    def rounded(self, rows, stem=None):
        found = states(self, rows, stem)
        return found * (1 + 1e-3 * (rows[0].tokens[-1] % 7))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Forward, "states", rounded)
        XentHFLM(pretrained=half, tokenizer=tokenizer)


@pytest.mark.parametrize("stride", [0, 97, "half", 2.0])
def test_a_stride_lies_within_the_window(build, stride):
    with pytest.raises(InvalidInputError, match="stride lies between 1 and max_length=96"):
        build(stride=stride)


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
        ({"log_tokens": "no"}, "log_tokens is true or false; got 'no'"),
        ({"backend": "seq2seq"}, "causal language models; got backend='seq2seq' for llama. Leave backend out"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(build, options, message):
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        build(**options)


def test_a_misspelt_argument_and_a_missing_folder_are_told_in_a_line(build, tokenizer, tmp_path):
    with pytest.raises(InvalidInputError, match=r"xent-hf has no argument 'log_token'; did you mean 'log_tokens'\?"):
        build(log_token=True)
    with pytest.raises(InvalidInputError, match=r"nowhere' can't be loaded: "):
        XentHFLM(pretrained=str(tmp_path / "nowhere"), tokenizer=tokenizer)


def test_a_max_length_may_be_text(build):
    assert build(max_length="24").max_length == 24


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_a_window_has_no_more_ids_than_positions(tokenizer, name):
    with pytest.raises(
        InvalidInputError, match=r"max_length=200 is more than the \d+ positions of \S*(wpe|embed_positions)"
    ):
        XentHFLM(pretrained=tiny_model(name), tokenizer=tokenizer, max_length=200)


def test_the_patches_of_an_image_are_no_positions_of_a_text(tokenizer):
    """Gemma 3 with its vision tower, whose table has fewer places than a text."""
    text = dict(
        CONFIGS["gemma3"][1],
        max_position_embeddings=1024,
        final_logit_softcapping=None,
        vocab_size=VOCAB,
        pad_token_id=0,
    )
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, boi_token_index=381, eoi_token_index=382,
        image_token_index=383,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert type(model).__name__ == "Gemma3ForConditionalGeneration"
    lm = XentHFLM(pretrained=model, tokenizer=tokenizer)
    assert lm.max_length == 1024
    assert all((lm.forward.hidden, lm.forward.packing, lm.forward.caching))
    theirs = stock(model, tokenizer)
    assert [a[0] for a in choices(lm)] == pytest.approx([a[0] for a in choices(theirs)], rel=1e-5)


def test_a_dynamically_quantized_model_is_scored_plainly(tokenizer):
    """Its layers scale by the largest number of a batch: no shortcut agrees to the last digits, and none is taken."""
    model = tiny_model("llama_untied")
    model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    lm, theirs = (kind(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=88) for kind in (XentHFLM, HFLM))
    assert not any((lm.forward.hidden, lm.forward.packing, lm.forward.caching))
    [ours], [expected] = choices(lm, PAIRS[:1]), choices(theirs, PAIRS[:1])
    assert ours[0] == pytest.approx(expected[0], rel=1e-5)


def test_models_without_a_head_for_tokens_are_refused(model, tokenizer):
    classifier = transformers.LlamaForSequenceClassification(model.config)
    for other in (model.model, classifier.eval()):
        with pytest.raises(InvalidInputError, match=f"{type(other).__name__} gives no logits of every position"):
            XentHFLM(pretrained=other, tokenizer=tokenizer)


def test_encoder_decoders_are_refused_whatever_they_are_called(tokenizer):
    config = transformers.T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(InvalidInputError, match="t5 is an encoder-decoder"):
        XentHFLM(
            pretrained=transformers.T5ForConditionalGeneration(config), tokenizer=tokenizer, backend="causal",
            max_length=32,
        )  # fmt: skip


def test_a_tokenizer_with_more_ids_than_the_model_is_found_before_it_runs(tokenizer, monkeypatch):
    config = transformers.LlamaConfig(**CONFIGS["llama_tied"][1], vocab_size=260)
    lm = XentHFLM(pretrained=transformers.LlamaForCausalLM(config).eval(), tokenizer=tokenizer)
    monkeypatch.setattr(lm.forward, "states", lambda *args: pytest.fail("the model ran"))
    with pytest.raises(InvalidInputError, match=r"gives the id \d+, and the model has 260 ids; pass the tokenizer"):
        rolling(lm, TEXT)


def test_ids_without_a_context_are_refused(lm, monkeypatch):
    monkeypatch.setattr(lm.forward, "states", lambda *args: pytest.fail("the model ran"))
    with pytest.raises(InvalidInputError, match="needs a context of at least one id"):
        lm._loglikelihood_tokens([(None, [], [1, 2])])


# Progress.


def test_one_bar_tells_tokens_a_second(lm, monkeypatch):
    out = io.StringIO()
    out.isatty = lambda: True
    shown = runner.tqdm

    def bar(*args, **kwargs):
        return shown(*args, **kwargs, file=out, mininterval=0)

    monkeypatch.setattr(hf_model, "tqdm", bar)
    lm.loglikelihood(requests("loglikelihood", PAIRS))
    assert "tok/s" in out.getvalue()
    assert "100%" in out.getvalue()
    assert "<00:00" in out.getvalue()  # what remains
    assert out.getvalue().count("\n") == 1


def test_there_is_no_bar_without_a_terminal(lm, capsys):
    lm.loglikelihood(requests("loglikelihood", PAIRS))
    lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(TEXT,)]))
    assert capsys.readouterr().err == ""


def test_nothing_to_do_is_nothing(lm):
    assert lm.loglikelihood([]) == []
    assert lm.loglikelihood_rolling([]) == []


def test_scores_are_token_scores(lm):
    assert all(isinstance(result.scores, TokenScores) and result.scores.row_kind == "token" for result in choices(lm))


def test_freed_memory_is_kept_while_a_batch_runs_and_given_back():
    def fill():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            torch.empty(16 * 2**20).fill_(1.0)  # 64 MiB, 16,384 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    with freed_memory.keep_freed_memory():
        fill()
        assert fill() < 4000
        held = resident()
    assert held - resident() > 48 * 2**20
