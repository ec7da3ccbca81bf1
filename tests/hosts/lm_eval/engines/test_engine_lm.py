"""What all engines share: one table of a task by every model, and what an engine can't give."""

from __future__ import annotations

import math

import pytest
from lm_eval.evaluator import evaluate as lm_evals_evaluate
from support.engines import LENGTH, sglang_in_place, vllm_in_place
from support.hf_model import TEXT
from support.lm_eval import config, entries, values

from xent_metrics.errors import MissingScoreError
from xent_metrics.hosts.lm_eval import TorchLM, XentTask, loaded_models
from xent_metrics.hosts.lm_eval.engines.engine_lm import not_installed

METRICS = ["cross_entropy", "perplexity", "bits_per_byte", "byte_perplexity", "word_perplexity", "token_accuracy"]
BINNED = ["expected_calibration_error", "calibration_weighted_cross_entropy"]
TEXTS = [TEXT, TEXT[:150], "Größe", TEXT[100:230]]
QUESTIONS = [
    {"question": "The loss of a", "choices": ["language", "model of bytes", "token"], "gold": 2},
    {"question": "Bytes are", "choices": ["counted", "seven"], "gold": 0},
]


@pytest.fixture(scope="module")
def model(model):
    """In float64: in float32 other shapes of batches move a token by more than the bound on some processors."""
    return model.double()


def table(lm):
    """The values of a rolling task and a multiple-choice task."""
    over = [{"metric": "cross_entropy"}, {"metric": "brier_score"}, {"metric": "bits_per_byte"}, {"metric": "acc"}]
    tasks = {
        "rolling": XentTask(
            config("loglikelihood_rolling", [{"text": text} for text in TEXTS], entries(*METRICS, *BINNED))
        ),
        "choice": XentTask(config("multiple_choice", QUESTIONS, over)),
    }
    for name, task in tasks.items():
        task.set_config("task", name)
    results = lm_evals_evaluate(lm, {"tasks": tasks}, bootstrap_iters=0)
    return {(name, key): value for name in tasks for key, value in values(results, name).items() if "stderr" not in key}


@pytest.fixture(scope="module")
def expected(hf):
    return table(hf)


def slope(name, value, nats_per_word):
    """How much a metric can move if the nll of every token does, by one nat per token."""
    slopes = {
        "perplexity": value,
        "byte_perplexity": value,
        "word_perplexity": value * nats_per_word / 2,  # no token here has less than two nats on average
        "bits_per_byte": 1 / math.log(2),  # a token has at least a byte
        "calibration_weighted_cross_entropy": 10,  # the weights move, too
        "brier_score": 20,  # of choices, which have several tokens
    }
    return slopes.get(name, 1)


def check_table(found, expected, bound):
    """No value is further off than if every nll were by `bound` nats."""
    assert found.keys() == expected.keys()
    nats_per_word = math.log(expected["rolling", "word_perplexity"])
    for (task, name), value in found.items():
        allowed = bound * slope(name, expected[task, name], nats_per_word)
        assert abs(value - expected[task, name]) <= allowed, (task, name)


def test_xent_torch_gives_the_table(model, tokenizer, expected):
    check_table(table(TorchLM(model, tokenizer=tokenizer, max_length=LENGTH, device="cpu")), expected, 1e-6)


def test_xent_completions_gives_the_table(connect, expected):
    check_table(table(connect()), expected, 1e-6)


def test_xent_completions_gives_the_table_to_four_digits(connect, expected):
    found = table(connect({"digits": 4}))
    check_table(found, expected, 0.5e-4)
    assert found != expected


def test_xent_vllm_and_xent_sglang_give_the_table(folder, expected):
    with vllm_in_place() as vllm:
        check_table(table(vllm(folder, max_model_len=LENGTH + 2)), expected, 1e-6)
    with sglang_in_place() as sglang:
        check_table(table(sglang(folder, context_length=LENGTH + 3)), expected, 1e-6)


@pytest.mark.parametrize("metric", ["mean_reciprocal_rank", "prediction_entropy", "z_loss"])
def test_where_only_an_engine_is_loaded_the_task_refuses_metrics_of_the_distribution(connect, metric, monkeypatch):
    """As in a process of its own, where no other model class is loaded."""
    lm = connect()
    monkeypatch.setattr(loaded_models, "_loaded_models", lambda: [type(lm)])
    task = XentTask(config("loglikelihood_rolling", [{"text": "one"}], entries("bits_per_byte", metric)))
    task.set_config("num_fewshot", 0)
    with pytest.raises(
        MissingScoreError, match=rf"task t: {metric} needs `\w+`, which .*xent-completions gives each token's"
    ):
        task.build_all_requests()


def test_where_only_an_engine_is_loaded_other_metrics_pass(connect, monkeypatch):
    monkeypatch.setattr(loaded_models, "_loaded_models", lambda: [type(connect())])
    questions = config("multiple_choice", QUESTIONS, [{"metric": "brier_score"}, {"metric": "perplexity"}])
    rolling = config("loglikelihood_rolling", [{"text": "one"}], entries(*METRICS, *BINNED))
    for task in map(XentTask, (questions, rolling)):
        task.set_config("num_fewshot", 0)
        task.build_all_requests()
        assert task.instances


def test_a_base_class_for_an_engine_that_is_not_installed():
    base = not_installed("xent-x", "pip install x", ImportError("no x"))
    with pytest.raises(ImportError, match=r"xent-x needs its engine: pip install x \(no x\)"):
        base("anything", option=1)
