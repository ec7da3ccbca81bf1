"""What each kind of lm-eval model can give a metric, known before any model is loaded.

Each kind is described by scores without rows. If they meet a metric's requirements, the metric can be computed from that model.
"""

from __future__ import annotations

from xent_metrics.errors import InvalidInputError, MissingScoreError
from xent_metrics.hosts.lm_eval.document_scores import choice_scores
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums.metric import TokenMetric

__all__ = [
    "ANSWERS_GIVE",
    "ANY_MODEL_GIVES",
    "CHOICES_GIVE",
    "ENGINES_GIVE",
    "can_score",
    "models_that_score",
    "require_scores",
    "token_model_gives",
    "unmet_options",
]

#: Every lm-eval model: one loglikelihood per request. The task knows the text, so its bytes and words are known too.
ANY_MODEL_GIVES = TokenScores.empty(["num_bytes", "num_words"], row_kind="document")
#: Multiple choice with any model: the distribution over the choices, without any text. The metric's options decide
#: which scores are computed from it; see `choice_scores`.
CHOICES_GIVE = TokenScores.empty([], row_kind="choice")
_OF_TOKENS = ("confidence", "correct", "target", "num_bytes", "invalid")
#: Serving engines: the log-probability of each token and the largest one, but no distribution for extra scores.
ENGINES_GIVE = TokenScores.empty(_OF_TOKENS)

#: A generated answer as one row: how sure the model was, and whether lm-eval calls it right; see `answer_scores`.
ANSWERS_GIVE = TokenScores.empty(["confidence", "correct"], row_kind="choice")


def token_model_gives(metric: TokenMetric) -> TokenScores:
    """What a model with token scores gives the metric, including all extra scores that it asks for."""
    return TokenScores.empty(_OF_TOKENS, extra_scores=metric.extra_scores())


def require_scores(scores: TokenScores, metric: TokenMetric) -> None:
    """Raise `MissingScoreError` unless `scores` has everything that the metric needs."""
    scores.require({*metric.requires, *metric.extra_scores()}, row_kinds=metric.row_kinds, metric=metric.name)


def can_score(scores: TokenScores, metric: TokenMetric) -> bool:
    """True if `scores` has everything that the metric needs.

    >>> from xent_metrics import get_metric
    >>> can_score(ANY_MODEL_GIVES, get_metric("bits_per_byte")), can_score(ANY_MODEL_GIVES, get_metric("perplexity"))
    (True, False)
    """
    try:
        require_scores(scores, metric)
    except MissingScoreError:
        return False
    return True


def unmet_options(metric: TokenMetric) -> list[str]:
    """The options of scoring that the metric needs and no model with token scores takes: it scores all metrics alike.

    >>> from xent_metrics import get_metric
    >>> unmet_options(get_metric("cross_entropy", label_smoothing=0.1))
    ['class_weight', 'label_smoothing']
    """
    return sorted(metric.scoring_options().keys() - {"token_bytes"})


def models_that_score(metric: TokenMetric) -> dict[str, bool]:
    """Which kinds of lm-eval model the metric can be computed from, by the kinds' names.

    >>> from xent_metrics import get_metric
    >>> [model for model, able in models_that_score(get_metric("cross_entropy")).items() if not able]
    ['any lm-eval model']
    """
    whole = can_score(ANY_MODEL_GIVES, metric)  # a model with token scores gives those of the whole text, too
    return {
        "any lm-eval model": whole,
        "any lm-eval model, `over: choices`": _can_score_choices(metric),
        "serving engines with log-probabilities": whole or _can_score_tokens(ENGINES_GIVE, metric),
        "`xent-hf` and `xent-torch`": whole or _can_score_tokens(token_model_gives(metric), metric),
    }


def _can_score_tokens(scores: TokenScores, metric: TokenMetric) -> bool:
    return not unmet_options(metric) and can_score(scores, metric)


def _can_score_choices(metric: TokenMetric) -> bool:
    try:
        return can_score(choice_scores(metric, [0.0, 0.0], 0), metric)
    except InvalidInputError:  # a metric of two models, or of a number of classes
        return False
