"""`xent-completions` against a real server on loopback: its habits, its faults, and the same scores as `xent-hf`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from lm_eval.api.model import CachingLM
from lm_eval.evaluator import evaluate as lm_evals_evaluate
from sqlitedict import SqliteDict
from support.byte_model import byte_bpe
from support.engines import LENGTH, check_generated, check_same
from support.hf_model import TEXT, choices, multiple_choice, requests, rolling
from support.lm_eval import TEXTS as LM_TEXTS
from support.lm_eval import config, entries, values
from support.task_yamls import write_tasks

from xent_metrics.errors import EngineError, InvalidInputError, MissingExtraError, MissingScoreError
from xent_metrics.hosts.lm_eval import XentTask
from xent_metrics.hosts.lm_eval.models.results import ScoredLoglikelihood
from xent_metrics.hosts.lm_eval.models.tokenizers import ByteTokenizer


def cached(lm, path, kind, *arguments):
    """A model's answers with lm-eval's cache."""
    return getattr(CachingLM(lm, str(path / "cache.db")), kind)(requests(kind, list(arguments)))


@pytest.mark.parametrize(
    ("habits", "options"),
    [
        ({}, {}),
        ({}, {"num_concurrent": 3}),
        ({}, {"batch_size": 4}),
        ({"first": "number", "generated": False}, {}),
        ({"first": "missing"}, {}),
        ({"first": "dropped"}, {}),
        ({"first": "dropped", "generated": False}, {}),
        ({"tokens": "bytes"}, {}),
        ({"tokens": ""}, {}),
        ({"tokens": "token_id"}, {}),
        ({"tokens": "vocabulary"}, {}),
        ({"takes": "texts"}, {"tokenized_requests": False}),
    ],
    ids=str,
)
def test_every_habit_gives_the_scores_of_xent_hf(connect, hf, habits, options):
    check_same(connect(habits, **options), hf)


def test_rounded_numbers_are_off_by_half_a_unit(connect, hf):
    check_same(connect({"digits": 4}), hf, atol=0.5e-4 + 2e-5)


def test_concurrent_requests_overlap(connect, hf):
    choices(connect(num_concurrent=3))
    assert 1 < connect.server.most_at_once <= 3


@pytest.mark.parametrize(
    ("habits", "message"),
    [
        ({"shift": "after"}, "is off by one place: .* is of the place after it(.|\n)*generated(.|\n)*read"),
        ({"shift": "list"}, "is of the place after it"),
        ({"shift": "back"}, "is of the place before it"),
        ({"logprobs": "zeros"}, "gives zeros in place of"),
        ({"logprobs": "generated"}, "gives no log-probabilities of tokens that it reads"),
        ({"logprobs": "no"}, "http://127.*: the server gives no log-probabilities"),
        ({"logprobs": "content"}, "no list tokens"),
        ({"logprobs": "no top"}, "no list top_logprobs"),
        ({"logprobs": "nan"}, "other log-probabilities than it generated"),
        ({"logprobs": "positive"}, "other log-probabilities than it generated"),
        ({"offset": -0.3}, "other log-probabilities than it generated"),
        ({"echo": "no"}, "doesn't echo the prompt"),
    ],
    ids=str,
)
def test_a_server_that_can_not_score_is_refused_when_the_model_loads(connect, habits, message):
    with pytest.raises(EngineError, match=message):
        connect(habits)


def test_a_server_that_adds_a_token_is_refused(connect):
    with pytest.raises(
        EngineError, match=r"of a prompt of \d+ tokens it lists \d+. From token 0 on it has \['<\|end\|>', 'The'"
    ):
        connect({"takes": "texts", "adds_bos": True}, tokenized_requests=False)


@pytest.mark.parametrize("tokenized", [True, False])
def test_another_tokenizer_is_found_at_the_first_request(connect, tokenized):
    with pytest.raises(EngineError, match="Pass the tokenizer"):
        connect({"other_tokenizer": byte_bpe(adds_bos=False)}, tokenized_requests=tokenized)


@pytest.mark.parametrize("failure", [429, 500, "cut"])
@pytest.mark.parametrize("concurrent", [1, 3])
def test_failures_are_tried_again(connect, hf, no_waiting, failure, concurrent):
    check_same(connect({"failures": [failure, failure]}, num_concurrent=concurrent), hf)


def test_a_server_that_is_not_there_is_named(connect, no_waiting):
    with pytest.raises(
        EngineError, match=r"no answer from http://127.*/v1/completions in 2 tries: 500 .*Is the server running"
    ):
        connect({"failures": [500] * 9}, max_retries=2)


@pytest.mark.parametrize("concurrent", [1, 3])
def test_what_was_computed_before_a_failure_is_kept(connect, hf, no_waiting, tmp_path, concurrent):
    lm = connect(num_concurrent=concurrent, max_retries=1)
    asked = len(connect.server.requests)
    connect.server.habits.fails_from = asked + 6
    with pytest.raises(EngineError, match="no answer"):
        cached(lm, tmp_path, "loglikelihood", *multiple_choice())
    with SqliteDict(str(tmp_path / "cache.db")) as cache:
        assert len(cache) == 1 + 5  # the model's entry, and all that were answered
    connect.server.habits.fails_from = None
    found = cached(connect(), tmp_path, "loglikelihood", *multiple_choice())
    assert [float(one) for one, _ in found] == pytest.approx([float(one) for one, _ in choices(hf)], rel=1e-5)
    assert len(connect.server.requests) == asked + len(multiple_choice()) - 5
    assert all(isinstance(result, ScoredLoglikelihood) for result in found)


def test_a_cache_of_another_model_is_refused(connect, tmp_path):
    cached(connect(), tmp_path, "loglikelihood_rolling", ("one",))
    with pytest.raises(InvalidInputError, match="holds results of model=tiny, and this is model=other"):
        cached(connect(model="other"), tmp_path, "loglikelihood_rolling", ("one",))


def test_a_cache_of_other_weights_behind_the_same_name_is_refused(connect, tmp_path, monkeypatch):
    cached(connect(), tmp_path, "loglikelihood_rolling", ("one",))
    other = connect()
    monkeypatch.setattr(other, "_greedy", [1, 2, 3])
    with pytest.raises(InvalidInputError, match="holds results of generates="):
        cached(other, tmp_path, "loglikelihood_rolling", ("one",))


def test_tokens_are_logged(connect):
    [result] = rolling(connect(log_tokens=True), "The loss of bytes")
    logged = json.loads(str(result))
    assert "".join(token["text"] for token in logged["tokens"]) == "The loss of bytes"
    assert logged["loglikelihood"] == pytest.approx(-sum(token["nll"] for token in logged["tokens"]), rel=1e-12)
    assert {"text", "id", "nll", "confidence", "correct", "num_bytes"} == set(logged["tokens"][0])


def test_long_texts_are_scored_with_a_stride(connect, model, tokenizer):
    from xent_metrics.hosts.lm_eval import XentHFLM

    lm = connect(stride=20)
    hf = XentHFLM(model, tokenizer=tokenizer, max_length=lm.window_length, stride=20)
    assert rolling(lm, TEXT) == pytest.approx(rolling(hf, TEXT), rel=1e-6)
    assert rolling(lm, TEXT) != pytest.approx(rolling(connect(), TEXT), rel=1e-4)


def test_prompts_fill_the_context_and_no_more(connect):
    lm = connect()
    rolling(lm, TEXT)
    longest = max(len(body["prompt"][0]) + body["max_tokens"] for body in connect.server.requests if body.get("echo"))
    assert longest == lm.window_length + 2 == 62


def test_texts_are_generated_as_by_lm_eval(connect):
    [text] = connect().generate_until(requests("generate_until", [("The loss", {"until": [], "max_gen_toks": 3})]))
    assert isinstance(text, str)


def test_generated_texts_have_scores_where_they_are_asked_for(connect, hf):
    check_generated(connect(), hf)


def test_more_than_an_engine_gives_of_a_generated_text_is_refused_before_it_generates(connect):
    lm = connect()
    asked = len(connect.server.requests)
    listed = [{"metric": "exact_match"}, {"metric": "prediction_entropy", "over": "generated"}]
    task = XentTask(config("generate_until", [{"question": "Why?", "answer": "so"}], listed))
    with pytest.raises(MissingScoreError, match=r"xent-completions can't give entropy of each token"):
        lm_evals_evaluate(lm, {"tasks": {"t": task}}, bootstrap_iters=0)
    assert len(connect.server.requests) == asked


@pytest.mark.parametrize("tokenized", [True, False])
def test_a_chat_becomes_a_text(connect, tokenized):
    lm = connect(tokenized_requests=tokenized)
    lm.tokenizer.chat_template = "{% for each in messages %}{{ each.role }}: {{ each.content }}{% endfor %}"
    assert lm.apply_chat_template([{"role": "user", "content": "Why?"}]) == "user: Why?"
    assert lm.tokenizer_name.startswith("__")


def test_a_tokenizer_without_chats_is_named(connect, monkeypatch):
    lm = connect()
    monkeypatch.setattr(lm, "tokenizer", ByteTokenizer())
    with pytest.raises(InvalidInputError, match="bytes has no chat template"):
        lm.apply_chat_template([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_concurent": 3}, "takes no 'num_concurent'. Did you mean 'num_concurrent'?"),
        ({"stride": 0}, "stride lies between 1 and max_length=60"),
        ({"log_tokens": "no"}, "log_tokens is true, false or parquet"),
        ({"tokenizer": "/nowhere/at/all"}, r"the tokenizer of xent-completions, /nowhere/at/all, can't be loaded"),
        ({"tokenizer": None, "tokenizer_backend": "none"}, "needs a tokenizer"),
    ],
    ids=str,
)
def test_mistaken_arguments_are_refused(connect, options, message):
    with pytest.raises(InvalidInputError, match=message):
        connect(**options)


def test_an_address_is_needed():
    from xent_metrics.hosts.lm_eval import XentCompletions

    with pytest.raises(InvalidInputError, match="needs base_url=http://"):
        XentCompletions(model="tiny")


def test_a_missing_package_is_named(connect, monkeypatch):
    from lm_eval.models import api_models

    monkeypatch.setattr(api_models, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lm_eval\[api\]'"):
        connect()


@pytest.mark.parametrize("metric", ["mean_reciprocal_rank", "prediction_entropy", "z_loss", "top_k_accuracy"])
def test_metrics_of_the_whole_distribution_are_refused_by_name_before_a_request(connect, metric):
    """Another class that gives all scores may be loaded, as in this process: then the model itself refuses."""
    lm = connect()
    asked = len(connect.server.requests)
    task = XentTask(config("loglikelihood_rolling", [{"text": "one"}], entries(metric)))
    with pytest.raises(MissingScoreError, match=r"xent-completions can't give .* of each token"):
        lm_evals_evaluate(lm, {"tasks": {"t": task}}, bootstrap_iters=0)
    assert len(connect.server.requests) == asked


def test_lm_evals_own_metrics_and_ours_share_a_table(connect):
    task = XentTask(
        config(
            "loglikelihood_rolling", [{"text": "one two"}, {"text": TEXT}], entries("cross_entropy", "bits_per_byte")
        )
    )
    found = values(lm_evals_evaluate(connect(), {"tasks": {"t": task}}, bootstrap_iters=0))
    assert found["cross_entropy"] > 0
    assert found["cross_entropy_stderr"] > 0


@pytest.mark.slow
def test_our_command_runs_the_model(connect, folder, tmp_path, hf):
    url = connect().base_url
    write_tasks(tmp_path)
    arguments = f"base_url={url},model=tiny,tokenizer={folder},max_length={LENGTH + 2},num_concurrent=2"
    command = [
        sys.executable,
        "-m",
        "xent_metrics.cli",
        "lm-eval",
        "run",
        "--model",
        "xent-completions",
        "--model_args",
        arguments,
    ]
    tasks = ["--tasks", "rolling_tokens", "--include_path", str(tmp_path)]
    done, refused = (
        subprocess.run([*command, *tasks, *more], capture_output=True, text=True, timeout=300, check=False)
        for more in ([], ["--xent_metrics", "mean_reciprocal_rank"])
    )
    assert done.returncode == 0, done.stderr
    [row] = [line for line in done.stdout.splitlines() if "cross_entropy" in line]
    expected = rolling(hf, *LM_TEXTS)
    tokens = sum(result.scores.num_rows for result in expected)
    assert f"{-sum(expected) / tokens:.4f}" in row
    assert refused.returncode != 0
    assert "xent-completions gives each token's log-probability and the largest one" in refused.stderr + refused.stdout
