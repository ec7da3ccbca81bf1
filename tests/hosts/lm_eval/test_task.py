"""XentTask in lm-eval's own evaluator: what is in the results, and mistakes that are found before the model runs."""

import math

import pytest
from lm_eval.api.model import CachingLM
from lm_eval.utils import make_table
from support.lm_eval import (
    CHOICES,
    ROLLING,
    TEXTS,
    BigramLM,
    ScoredBigramLM,
    UnusedLM,
    choice_probabilities,
    config,
    entries,
    evaluate,
    values,
)

from xent_metrics.errors import InvalidInputError, InvalidTargetError, MissingScoreError
from xent_metrics.hosts.lm_eval import XentTask, loaded_models


def test_the_table_has_value_and_standard_error():
    """A `<name>_stderr` that is emitted after `<name>` replaces lm-eval's N/A."""
    task = XentTask(config("loglikelihood_rolling", ROLLING, entries("bits_per_byte")))
    results = evaluate(task, BigramLM())
    found = values(results)
    [row] = [line for line in make_table(results).splitlines() if "bits_per_byte" in line]
    cells = [cell.strip() for cell in row.split("|")][-5:-1]
    assert cells[::2] == ["↓", "±"]
    assert [float(cell) for cell in cells[1::2]] == [
        round(found[name], 4) for name in ("bits_per_byte", "bits_per_byte_stderr")
    ]
    assert found["bits_per_byte_stderr"] > 0
    assert results["n-samples"]["t"]["effective"] == len(TEXTS)


def test_nothing_is_carried_from_one_evaluation_to_the_next():
    task = XentTask(config("loglikelihood_rolling", ROLLING, entries("bits_per_byte", "cross_entropy")))
    assert values(evaluate(task, ScoredBigramLM())) == values(evaluate(task, ScoredBigramLM()))


def test_predict_only_computes_nothing():
    task = XentTask(config("loglikelihood_rolling", ROLLING, entries("bits_per_byte", "cross_entropy")))
    task.override_metric("bypass")  # what `--predict_only` does
    results = evaluate(task, BigramLM())
    assert len(results["samples"]["t"]) == len(TEXTS)
    assert not values(results)


def test_a_cache_of_responses_keeps_the_scores(tmp_path):
    task = XentTask(config("loglikelihood_rolling", ROLLING, entries("cross_entropy")))
    first, second = ScoredBigramLM(), ScoredBigramLM()
    found = [values(evaluate(task, CachingLM(model, str(tmp_path / "cache.db")))) for model in (first, second)]
    assert found[0] == found[1]
    assert (len(first.asked), len(second.asked)) == (len(TEXTS), 0)


@pytest.mark.parametrize("gold", [3, -1, "zz"])
def test_a_gold_answer_that_is_no_choice(gold):
    documents = [CHOICES[0] | {"gold": str(CHOICES[0]["gold"])}, CHOICES[1] | {"gold": str(gold)}]
    task = XentTask(config("multiple_choice", documents, [{"metric": "cross_entropy", "over": "choices"}]))
    with pytest.raises(InvalidTargetError, match=f"got '?{gold}'? in .*Two"):
        evaluate(task, UnusedLM())


def test_a_metric_made_for_another_number_of_choices():
    weights = {"metric": "cross_entropy", "over": "choices", "class_weight": [1.0, 2.0, 3.0, 4.0]}
    task = XentTask(config("multiple_choice", CHOICES, [weights]))
    with pytest.raises(InvalidInputError, match=r"task t, metric cross_entropy over 3 choices: .*class_weight"):
        evaluate(task, UnusedLM())
    documents = [document for document in CHOICES if len(document["choices"]) == 4]
    found = values(evaluate(XentTask(config("multiple_choice", documents, [weights])), BigramLM()))
    nll = -math.log(choice_probabilities(documents[0])[documents[0]["gold"]])
    assert found["cross_entropy"] == pytest.approx(nll, rel=1e-12)  # of one document the weight cancels


def test_several_gold_answers():
    documents = [document | {"gold": [0, 1]} for document in CHOICES]
    made = config("multiple_choice", documents, [{"metric": "cross_entropy", "over": "choices"}]) | {
        "doc_to_target": "gold"
    }
    with pytest.raises(InvalidInputError, match="list of gold answers; cross_entropy needs one"):
        XentTask(made)


def test_a_model_without_token_scores_before_it_runs(monkeypatch):
    monkeypatch.delattr(ScoredBigramLM, "gives_token_scores")  # as in a process that has loaded no such model
    monkeypatch.setattr(loaded_models, "LM", BigramLM)
    rolling = XentTask(config("loglikelihood_rolling", ROLLING, entries("bits_per_byte", "cross_entropy")))
    with pytest.raises(MissingScoreError, match=r"task t: cross_entropy is defined over .*--model xent-hf"):
        evaluate(rolling, UnusedLM())
    choice = XentTask(config("multiple_choice", CHOICES, entries("token_accuracy")))
    with pytest.raises(MissingScoreError, match="works with any model: `over: choices`"):
        evaluate(choice, UnusedLM())


def test_a_model_without_token_scores_where_another_has_them():
    task = XentTask(config("loglikelihood_rolling", ROLLING, entries("cross_entropy")))
    with pytest.raises(MissingScoreError, match=r"^task t, metric cross_entropy: .*--model xent-torch"):
        evaluate(task, BigramLM())
