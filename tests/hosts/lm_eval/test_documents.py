"""The values that lm-eval gathers: the same bits in any order, standard errors, and what JSON shows of them."""

import itertools
import json
import math
import pickle

import numpy as np
import pytest
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.utils import handle_non_serializable
from support.lm_eval import (
    DOCUMENTS,
    ROLLING,
    TEXTS,
    BigramLM,
    ScoredBigramLM,
    bigram_scores,
    config,
    emitted,
    entries,
    evaluate,
    values,
)
from support.registered import plugin_of

from xent_metrics import RatioMetric, TokenScores, get_metric
from xent_metrics.hosts.lm_eval import XentTask
from xent_metrics.hosts.lm_eval.documents import DocumentSums, DocumentValue


def ratio_standard_error(y, x):
    """Cochran (1977), section 6.3: of Σy / Σx over documents drawn independently."""
    y, x = np.asarray(y, float), np.asarray(x, float)
    n, ratio = len(y), y.sum() / x.sum()
    return math.sqrt(n / (n - 1) * ((y - ratio * x) ** 2).sum()) / x.sum()


def test_standard_errors_are_the_ratio_estimators():
    found = values(
        evaluate(
            XentTask(
                config("loglikelihood_rolling", ROLLING, entries("bits_per_byte", "byte_perplexity", "word_perplexity"))
            ),
            BigramLM(),
        )
    )
    nats = [float(bigram_scores("", text).nll.double().sum()) for text in TEXTS]
    num_bytes = [len(text.encode()) for text in TEXTS]
    num_words = [ConfigurableTask.count_words(text) for text in TEXTS]
    per_byte, per_word = ratio_standard_error(nats, num_bytes), ratio_standard_error(nats, num_words)
    assert found["bits_per_byte_stderr"] == pytest.approx(per_byte / math.log(2), rel=1e-9)
    assert found["byte_perplexity_stderr"] == pytest.approx(found["byte_perplexity"] * per_byte, rel=1e-9)
    assert found["word_perplexity_stderr"] == pytest.approx(found["word_perplexity"] * per_word, rel=1e-9)


def test_gathered_values_aggregate_to_the_same_bits_in_any_order():
    names = ["bits_per_byte", "cross_entropy", "expected_calibration_error"]
    task = XentTask(config("loglikelihood_rolling", ROLLING, entries(*names)))
    found = emitted(task, ScoredBigramLM())
    ranks = [pickle.loads(pickle.dumps(found[rank::2])) for rank in range(2)]  # as gather_object sends them
    for name, order in itertools.product([*names, *(f"{n}_stderr" for n in names)], [(0, 1), (1, 0)]):
        aggregation = task.aggregation()[name]
        gathered = [document[name] for rank in order for document in ranks[rank]]
        assert isinstance(gathered[0], DocumentSums if name.endswith("_stderr") else DocumentValue)
        assert isinstance(aggregation(gathered), float)  # a tensor would be a string in results.json
        if not name.endswith("_stderr"):
            assert aggregation(gathered) == aggregation([document[name] for document in found])
        assert aggregation(gathered) == pytest.approx(aggregation([document[name] for document in found]), rel=1e-12)
    assert math.isnan(task.aggregation()["bits_per_byte"]([]))
    assert math.isnan(task.aggregation()["bits_per_byte_stderr"]([]))


@pytest.mark.parametrize("name", ["cross_entropy", "expected_calibration_error"])
def test_what_is_gathered_is_little_more_than_the_sums(name):
    metric = get_metric(name)
    found = [DocumentValue.of(metric, bigram_scores("", text)) for text in TEXTS]
    both = (found, [DocumentSums.of(metric, value.sums) for value in found])
    for values_, most in zip(both, (64, 0.2 * metric.state.nbytes + 64), strict=True):
        pickled = pickle.dumps(values_)
        assert len(pickled) / len(TEXTS) < metric.state.nbytes + most
        assert all(torch.equal(a.sums, b.sums) for a, b in zip(pickle.loads(pickled), values_, strict=True))
        assert pickle.loads(pickled) == values_
    empty = pickle.loads(pickle.dumps(DocumentValue.placeholder()))
    assert empty.sums.shape == (0, 8)


def test_one_document_has_a_value_and_no_standard_error():
    found = values(
        evaluate(XentTask(config("loglikelihood_rolling", ROLLING[:1], entries("bits_per_byte"))), BigramLM())
    )
    assert math.isfinite(found["bits_per_byte"])
    assert math.isnan(found["bits_per_byte_stderr"])


def test_results_and_samples_are_plain_json():
    results = evaluate(XentTask(config("loglikelihood_rolling", ROLLING, entries("bits_per_byte"))), ScoredBigramLM())
    json.dumps(results["results"], allow_nan=False)
    sample = json.loads(json.dumps(results["samples"]["t"][0], default=handle_non_serializable, allow_nan=False))
    nats = float(bigram_scores("", TEXTS[0]).nll.double().sum())
    assert sample["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(TEXTS[0].encode()), rel=1e-14)
    sums = sample["bits_per_byte_stderr"]
    assert [len(TEXTS[0].encode()), pytest.approx(nats, rel=1e-14)] == [sums["num_bytes"], sums["nats[num_bytes > 0]"]]
    assert sample["filtered_resps"] == [pytest.approx(-nats, rel=1e-14)]


class MeanProbability(RatioMetric):
    """Names its sums as cross_entropy does, and sums something else."""

    name = "mean_probability"

    def per_token(self, scores):
        return scores.prob

    def sum_names(self):
        return "nats", "tokens"


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("output_type", sorted(DOCUMENTS))
def test_metrics_that_give_other_sums_one_name_keep_their_own_values(output_type, order, install):
    install(plugin_of(MeanProbability))
    over = {"over": "choices"} if output_type == "multiple_choice" else {}
    listed = [entry | over for entry in entries("cross_entropy", "mean_probability")][::order]

    def found(metric_list):
        return values(evaluate(XentTask(config(output_type, DOCUMENTS[output_type], metric_list)), ScoredBigramLM()))

    assert found(listed) == found(listed[:1]) | found(listed[1:])


def test_such_a_metric_has_the_value_of_its_own_terms(install):
    install(plugin_of(MeanProbability))
    task = XentTask(config("loglikelihood_rolling", ROLLING, entries("cross_entropy", "mean_probability")))
    found = values(evaluate(task, ScoredBigramLM()))
    nll = TokenScores.cat([bigram_scores("", text) for text in TEXTS]).nll.double()
    assert found["mean_probability"] == pytest.approx(float((-nll).exp().mean()), rel=1e-6)
    assert found["cross_entropy"] == pytest.approx(float(nll.mean()), rel=1e-6)
