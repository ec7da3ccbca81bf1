"""The text beside each result: the span that was scored, and plain values for everyone but us."""

import math
import pickle

import pytest
from support.lm_eval import (
    CHOICES,
    PAIRS,
    ROLLING,
    SPANS,
    BigramLM,
    ScoredBigramLM,
    bigram_scores,
    config,
    emitted,
    entries,
    evaluate,
    values,
)

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval import XentTask


def test_a_continuations_span_has_the_white_space_of_its_context():
    model = BigramLM()
    task = XentTask(
        config("loglikelihood", PAIRS, [{"metric": "bits_per_byte"}, {"metric": "acc", "aggregation": "mean"}])
    )
    found = values(evaluate(task, model))
    nats = sum(float(bigram_scores(*span).nll.double().sum()) for span in SPANS)
    assert found["bits_per_byte"] == pytest.approx(
        nats / math.log(2) / sum(len(s.encode()) for _, s in SPANS), rel=1e-12
    )
    assert found["acc"] == 0.0
    assert model.asked == [("Why? ", "because"), ("Who:\n", "nobody knows"), ("", "é")]
    scored = values(evaluate(task, ScoredBigramLM()))
    assert scored["bits_per_byte"] == pytest.approx(found["bits_per_byte"], rel=1e-15)


def test_a_filtered_result_pickles_as_the_plain_value():
    task = XentTask(config("multiple_choice", CHOICES, entries("bits_per_byte")))
    emitted(task, ScoredBigramLM())
    [answer, *_] = [instance.filtered_resps["none"] for instance in task.instances]
    assert type(pickle.loads(pickle.dumps(answer))) is tuple
    assert answer.text == " a"


def test_results_need_their_requests():
    task = XentTask(config("loglikelihood_rolling", ROLLING, entries("bits_per_byte")))
    with pytest.raises(InvalidInputError, match="apply_filters"):
        task.process_results(ROLLING[0], [-1.0])
