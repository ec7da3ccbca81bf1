"""The scores of a document, in lm-eval's own evaluator: against lm-eval's numbers, torchmetrics' route and NumPy."""

import functools
import math

import numpy as np
import pytest
import torch
from lm_eval.api.task import ConfigurableTask
from support.lm_eval import (
    CHOICES,
    PAIRS,
    ROLLING,
    SPANS,
    TEXTS,
    BigramLM,
    ScoredBigramLM,
    bigram_scores,
    choice_probabilities,
    config,
    entries,
    evaluate,
    values,
)

from xent_metrics import TokenScores, get_metric
from xent_metrics.hosts.lm_eval import XentTask

LENGTHS = ["bits_per_byte", "byte_perplexity", "word_perplexity"]


@pytest.mark.parametrize("model", [BigramLM, ScoredBigramLM, functools.partial(ScoredBigramLM, token_bytes=None)])
def test_per_length_metrics_are_lm_evals_own(model):
    ours = values(evaluate(XentTask(config("loglikelihood_rolling", ROLLING, entries(*LENGTHS))), model()))
    stock = values(evaluate(ConfigurableTask(config=config("loglikelihood_rolling", ROLLING, None)), model()))
    for name in LENGTHS:
        assert ours[name] == pytest.approx(stock[name], rel=1e-14)
        assert isinstance(ours[name], float)


def test_token_scores_give_the_bits_that_torchmetrics_gives():
    names = ["cross_entropy", "perplexity", "token_accuracy", "expected_calibration_error", "bits_per_byte"]
    found = values(evaluate(XentTask(config("loglikelihood_rolling", ROLLING, entries(*names))), ScoredBigramLM()))
    for name in names:
        metric = get_metric(name)
        metric.update(TokenScores.cat([bigram_scores("", text) for text in reversed(TEXTS)]))
        assert found[name] == metric.compute().item()
        assert found[f"{name}_stderr"] > 0


def test_bytes_are_counted_from_the_text_where_the_tokens_know_none():
    task = XentTask(config("loglikelihood_rolling", ROLLING, entries("bits_per_byte", "cross_entropy")))
    without = values(evaluate(task, ScoredBigramLM(token_bytes=None)))
    assert without["bits_per_byte"] == pytest.approx(
        without["cross_entropy"] / math.log(2), rel=1e-14
    )  # a byte a token


@pytest.mark.parametrize("token_bytes", [{"e": 0}, {"e": 2}, {"e": 0, "h": 2}])
def test_bytes_are_counted_from_the_text_where_the_tokens_dont_cover_it(token_bytes):
    """A token without bytes would take its nats out of the sum, even if another token has its bytes."""
    documents = [{"text": "he, eh"}, {"text": "ehehe hh"}]
    task = XentTask(config("loglikelihood_rolling", documents, entries("bits_per_byte", "cross_entropy")))
    found = values(evaluate(task, ScoredBigramLM(token_bytes=token_bytes)))
    assert found["bits_per_byte"] == pytest.approx(found["cross_entropy"] / math.log(2), rel=1e-14)


def test_words_of_a_continuation_have_no_empty_one_before_the_delimiter():
    task = XentTask(config("loglikelihood", PAIRS, entries("word_perplexity")))
    nats = sum(float(bigram_scores(*span).nll.double().sum()) for span in SPANS)
    assert values(evaluate(task, BigramLM()))["word_perplexity"] == pytest.approx(math.exp(nats / 4), rel=1e-12)


def test_over_choices_is_the_softmax_of_the_choices():
    task = XentTask(config("multiple_choice", CHOICES, [
        {"metric": "cross_entropy", "over": "choices"},
        {"metric": "expected_calibration_error", "over": "choices", "num_bins": 5},
        {"metric": "token_accuracy", "over": "choices"},
        {"metric": "acc"},
        {"metric": "acc_norm", "aggregation": "mean"},
    ]))  # fmt: skip
    found = values(evaluate(task, BigramLM()))
    rows = [choice_probabilities(document) for document in CHOICES]
    gold = [document["gold"] for document in CHOICES]
    nll = np.array([-math.log(row[g]) for row, g in zip(rows, gold, strict=True)])
    assert found["cross_entropy"] == pytest.approx(nll.mean(), rel=1e-12)
    assert found["cross_entropy_stderr"] == pytest.approx(nll.std(ddof=1) / math.sqrt(len(nll)), rel=1e-9)
    correct = np.array([row.argmax() == g for row, g in zip(rows, gold, strict=True)])
    confidence = np.array([row.max() for row in rows])
    bins = np.ceil(confidence * 5).astype(int)
    gaps = [abs(correct[bins == b].sum() - confidence[bins == b].sum()) for b in set(bins)]
    assert found["expected_calibration_error"] == pytest.approx(sum(gaps) / len(rows), rel=1e-9)
    assert found["token_accuracy"] == found["acc"] == correct.mean()
    assert "acc_norm" in found


def test_the_brier_score_is_lm_evals_own():
    documents = [{**document, "choices": document["choices"][:2], "gold": 1} for document in CHOICES]
    found = values(evaluate(XentTask(config("multiple_choice", documents, entries("brier_score"))), BigramLM()))
    stock = ConfigurableTask(config=config("multiple_choice", documents, [{"metric": "brier_score"}]))
    assert found["brier_score"] == pytest.approx(values(evaluate(stock, BigramLM()))["brier_score"], rel=1e-12)
    assert found["brier_score_stderr"] > 0


def test_metrics_of_the_whole_distribution_are_over_choices():
    names = [
        "top_k_accuracy",
        "mean_reciprocal_rank",
        "prediction_entropy",
        "full_calibration_error",
        "optimal_temperature",
    ]
    listed = [{"metric": name, "over": "choices"} for name in names]
    listed.append({"metric": "classwise_calibration_error", "over": "choices", "classes": 4})
    found = values(evaluate(XentTask(config("multiple_choice", CHOICES, listed)), BigramLM()))
    rows = [choice_probabilities(document) for document in CHOICES]
    entropy = np.mean([-(row * np.log(row)).sum() for row in rows])
    assert found["prediction_entropy"] == pytest.approx(entropy, rel=1e-12)
    assert all(math.isfinite(found[entry["metric"]]) for entry in listed)


def test_over_gold_is_the_gold_continuation_with_its_delimiter():
    listed = [{"metric": "bits_per_byte"}, {"metric": "cross_entropy", "over": "gold"}]
    task = XentTask(config("multiple_choice", CHOICES, listed, target_delimiter="  "))
    found = values(evaluate(task, ScoredBigramLM()))
    golds = [bigram_scores(d["question"], "  " + d["choices"][d["gold"]]) for d in CHOICES]
    metric = get_metric("cross_entropy")
    metric.update(TokenScores.cat(golds))
    assert found["cross_entropy"] == metric.compute().item()
    assert found["bits_per_byte"] == pytest.approx(metric.compute().item() / math.log(2), rel=1e-15)  # a byte a token


def test_choices_that_are_contexts():
    """As in Winogrande: doc_to_text is the gold index, and each choice is a context of the same continuation."""
    documents = [
        {"choices": ["one", "two"], "gold": 1, "end": "went on"},
        {"choices": ["x", "yy"], "gold": 0, "end": "so"},
    ]
    listed = [{"metric": "cross_entropy", "over": "choices"}, {"metric": "acc"}, {"metric": "bits_per_byte"}]
    made = config("multiple_choice", documents, listed) | {"doc_to_text": "{{gold}}", "doc_to_target": "{{end}}"}
    model = BigramLM()
    found = values(evaluate(XentTask(made), model))
    assert ("two", " went on") in model.asked
    nats = [[float(bigram_scores(c, " " + d["end"]).nll.double().sum()) for c in d["choices"]] for d in documents]
    golds = [row[d["gold"]] for row, d in zip(nats, documents, strict=True)]
    expected = np.mean([g + math.log(sum(math.exp(-n) for n in row)) for g, row in zip(golds, nats, strict=True)])
    assert found["cross_entropy"] == pytest.approx(expected, rel=1e-9)
    assert found["bits_per_byte"] == pytest.approx(sum(golds) / math.log(2) / len(" went on so"), rel=1e-12)


def test_mutual_information_requests_are_not_taken_for_choices():
    listed = [{"metric": "cross_entropy", "over": "choices"}, {"metric": "acc_mutual_info"}]
    with_them = values(evaluate(XentTask(config("multiple_choice", CHOICES, listed)), BigramLM()))
    alone = values(evaluate(XentTask(config("multiple_choice", CHOICES, listed[:1])), BigramLM()))
    assert with_them["cross_entropy"] == alone["cross_entropy"]


def test_gold_may_be_a_choices_text():
    documents = [document | {"gold": document["choices"][document["gold"]]} for document in CHOICES]
    listed = [{"metric": "cross_entropy", "over": "choices"}]
    by_text = values(evaluate(XentTask(config("multiple_choice", documents, listed)), BigramLM()))
    assert by_text == values(evaluate(XentTask(config("multiple_choice", CHOICES, listed)), BigramLM()))


def test_metrics_of_all_kinds_are_python_floats():
    listed = [{"metric": name, "over": over, "name": f"{name}_{over}"} for name in ("cross_entropy", "perplexity",
              "token_accuracy", "expected_calibration_error", "calibration_weighted_cross_entropy")
              for over in ("gold", "choices")]  # fmt: skip
    found = values(evaluate(XentTask(config("multiple_choice", CHOICES, listed)), ScoredBigramLM()))
    assert all(isinstance(found[entry["name"]], float) for entry in listed)
    assert not any(isinstance(value, torch.Tensor) for value in found.values())
