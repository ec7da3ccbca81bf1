"""Carries the extra scores that metrics need, such as the target's rank, to the model on lm-eval's requests.

lm-eval gives a model its requests and tells it nothing about the task. So `XentTask` writes the extra scores that its
metrics ask for (`TokenMetric.extra_scores`) on each request, and a model that gives token scores reads them there:

    scores = score_tokens(logits, target, extra_scores=asked_for(requests))

A generation asks in the same way for the scores of the text that it will give (generated_answers.py).

A name must mean one score. Metrics of a task, or tasks of a run, that ask for different scores under one name are refused.

Who syncs: nobody. Requests stay in the process that built them, and caches don't store what is written on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lm_eval.api.instance import Instance

from xent_metrics.errors import InvalidInputError, MetricOptionError
from xent_metrics.scoring.scores import ExtraScore
from xent_metrics.sums.extra_scores import extra_score_key
from xent_metrics.sums.metric import TokenMetric

__all__ = ["ask_for", "asked_for", "asks_for_scores", "extra_scores_of"]


def extra_scores_of(metrics: Mapping[str, TokenMetric]) -> dict[str, ExtraScore]:
    """The extra scores that the metrics, given by their names in the results, ask for together.

    >>> from xent_metrics import get_metric
    >>> list(extra_scores_of({"mrr": get_metric("mean_reciprocal_rank"), "top5": get_metric("top_k_accuracy")}))
    ['target_rank']

    Raises:
        MetricOptionError: two metrics ask for different extra scores under one name.
    """
    found: dict[str, ExtraScore] = {}
    asked_by: dict[str, str] = {}
    for metric_name, metric in metrics.items():
        for name, score in metric.extra_scores().items():
            if extra_score_key(found.setdefault(name, score)) != extra_score_key(score):
                raise MetricOptionError(
                    f"{asked_by[name]} and {metric_name} ask for different extra scores, both named {name!r}. Give one of "
                    "them another name in the metric's extra_scores(), or leave one metric out"
                )
            asked_by.setdefault(name, metric_name)
    return found


def ask_for(requests: Iterable[Instance], extra_scores: Mapping[str, ExtraScore]) -> None:
    """Ask for extra scores of each request's tokens, by name."""
    for request in requests:
        request.extra_scores = dict(extra_scores)


def asked_for(requests: Iterable[Instance]) -> dict[str, ExtraScore]:
    """The extra scores that any of the requests asks for.

    >>> from xent_metrics import get_metric
    >>> requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in ("a", "b")]
    >>> ask_for(requests[1:], get_metric("mean_reciprocal_rank").extra_scores())
    >>> list(asked_for(requests))
    ['target_rank']

    Raises:
        InvalidInputError: tasks that run together ask for different extra scores under one name.
    """
    found: dict[str, ExtraScore] = {}
    for request in requests:
        for name, score in getattr(request, "extra_scores", {}).items():
            if extra_score_key(found.setdefault(name, score)) != extra_score_key(score):
                raise InvalidInputError(
                    f"two tasks of this run ask for different extra scores, both named {name!r}. Run the tasks one by one, "
                    "or rename one of the scores in its metric's extra_scores()"
                )
    return found


def asks_for_scores(request: Instance) -> bool:
    """True if a task asks for the token scores of this request, with or without extra scores.

    >>> requests = [Instance("generate_until", {}, (text, {}), 0) for text in ("a", "b")]
    >>> ask_for(requests[1:], {})
    >>> list(map(asks_for_scores, requests))
    [False, True]
    """
    return hasattr(request, "extra_scores")
