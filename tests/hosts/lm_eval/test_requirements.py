"""What models are said to give, before they are loaded, is what they give."""

import pytest
from lm_eval.api.task import ConfigurableTask
from support.lm_eval import bigram_scores

from xent_metrics import get_metric
from xent_metrics.errors import MissingScoreError
from xent_metrics.hosts.lm_eval.document_scores import DocumentScores, choice_scores
from xent_metrics.hosts.lm_eval.requested_text import attach_text
from xent_metrics.hosts.lm_eval.requirements import (
    ANY_MODEL_GIVES,
    CHOICES_GIVE,
    can_score,
    require_scores,
    token_model_gives,
)


def kind(scores):
    return scores.row_kind, scores.fields().keys(), scores.extra_scores.keys()


@pytest.mark.parametrize("result", [-3.5, (-3.5, True)])
def test_any_model(result):
    document = DocumentScores(attach_text(result, "a text"), ConfigurableTask.count_bytes, ConfigurableTask.count_words)
    assert kind(document.row) == kind(ANY_MODEL_GIVES)
    assert len(ANY_MODEL_GIVES) == 0


def test_a_model_with_token_scores():
    assert kind(bigram_scores("", "a text")) == kind(token_model_gives(get_metric("cross_entropy")))
    assert token_model_gives(get_metric("z_loss")).extra_scores.keys() == get_metric("z_loss").extra_scores().keys()


def test_choices():
    metric = get_metric("cross_entropy")
    assert choice_scores(metric, [-1.0, -2.0], 0).row_kind == CHOICES_GIVE.row_kind


@pytest.mark.parametrize(
    ("name", "any_model", "tokens"),
    [("bits_per_byte", True, True), ("word_perplexity", True, False), ("cross_entropy", False, True)],
)
def test_a_metric_can_be_scored_from_what_has_its_scores(name, any_model, tokens):
    metric = get_metric(name)
    for scores, able in ((ANY_MODEL_GIVES, any_model), (token_model_gives(metric), tokens)):
        assert can_score(scores, metric) == able
        if not able:
            with pytest.raises(MissingScoreError, match=name):
                require_scores(scores, metric)
