"""What metrics need of each token beyond its loss, the target's rank for one, travels on lm-eval's requests.

lm-eval hands a model its requests and nothing of the task. So `XentTask` writes what its metrics ask for
(`TokenMetric.extra_scores`) on each request, and a model that gives token scores looks for it:

    scores = score_tokens(logits, target, extra_scores=asked_for(requests))

Who syncs: nobody. Requests stay in the process that built them, and go into no cache with what is written on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lm_eval.api.instance import Instance

from xent_metrics.scoring.scores import ExtraScore

__all__ = ["ask_for", "asked_for"]


def ask_for(requests: Iterable[Instance], extra_scores: Mapping[str, ExtraScore]) -> None:
    """Ask for extra scores of each request's tokens, by name."""
    for request in requests:
        request.extra_scores = dict(extra_scores)


def asked_for(requests: Iterable[Instance]) -> dict[str, ExtraScore]:
    """All that is asked for with any of the requests.

    >>> from xent_metrics import get_metric
    >>> requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in ("a", "b")]
    >>> ask_for(requests[1:], get_metric("mean_reciprocal_rank").extra_scores())
    >>> list(asked_for(requests))
    ['target_rank']
    """
    return {name: score for request in requests for name, score in getattr(request, "extra_scores", {}).items()}
