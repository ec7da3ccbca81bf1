"""More of a metric's contract: every route gives one value, an update is one graph, and the metric says what it is.

`check_metric` leaves these out: a graph takes a second to compile, and a sketch of a metric needn't be documented. The
pytest plugin has them all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from xent_metrics.collection import TokenMetricCollection
from xent_metrics.metrics.pair_metric import PairMetric
from xent_metrics.scoring.score import score_hidden_states
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.sums.ratio import RatioMetric
from xent_metrics.testing.case import BATCH, Case, given_to, own_scores, same, with_host_fields
from xent_metrics.testing.promises import by_lm_eval

__all__ = ["FURTHER_PROMISES"]

_BASES = (TokenMetric, RatioMetric, PairMetric)


def all_routes(case: Case) -> None:
    """Every route gives the same value: exactly of the same scores, to 1e-5 where they are scored in another way."""
    want = case.used().compute()
    for route, value in _exact_routes(case):
        same(value, want, f"the value by {route} and by update(scores)")
    for route, scores in _other_scores(case):
        metric = case.new()
        metric.update(scores)
        value = metric.compute()
        close = torch.allclose(value, want, rtol=1e-5, atol=1e-6)
        assert close, f"the values by {route} and by update(scores) differ: {value} and {want}"


def _exact_routes(case: Case) -> Iterator[tuple[str, Tensor]]:
    """Routes of the same scores, each with its value."""
    metric = case.new()
    for row in range(BATCH):
        metric(case.scores[row : row + 1])
    yield "a forward in each step, as Lightning logs it", metric.compute()
    collection = TokenMetricCollection({"alone": case.new()})
    collection.update(case.scores)
    yield "a TokenMetricCollection", collection.compute()["alone"]
    if find_spec("lm_eval"):
        yield "lm-eval's document values", by_lm_eval(case)


def _other_scores(case: Case) -> Iterator[tuple[str, TokenScores]]:
    """Scores of the same data from elsewhere; the head of the hidden states is the identity, so they are the logits."""
    metric = case.metric
    parts = [
        own_scores(metric, logits[None], target[None]) for logits, target in zip(case.logits, case.target, strict=True)
    ]
    yield "the logits of each sequence", with_host_fields(metric, TokenScores.cat(parts))
    options = metric.scoring_options()
    if isinstance(metric, PairMetric) or "binary" in options:
        return  # these take logits alone
    scores = score_hidden_states(
        case.logits, torch.eye(case.logits.shape[-1]), case.target,
        ignore_index=metric.ignore_index, extra_scores=metric.extra_scores(), **options,
    )  # fmt: skip
    yield "hidden states", with_host_fields(metric, scores)


def one_graph(case: Case) -> None:
    """`torch.compile` takes scoring and sums as one graph."""
    metric = case.new()

    def sums(logits: Tensor, target: Tensor) -> Tensor:
        scores = metric.score(given_to(metric, logits), target)
        return metric.exact_sums(with_host_fields(metric, scores))

    torch.compiler.reset()  # graphs of other metrics count towards a limit
    compiled: Callable[[Tensor, Tensor], Tensor] = torch.compile(sums, fullgraph=True, backend="eager")
    got, want = (metric.value_of(function(case.logits, case.target)) for function in (compiled, sums))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def described(case: Case) -> None:
    """The class has a docstring of its own, a formula and a unit."""
    metric: Any = case.metric
    cls = type(metric)
    assert inspect.cleandoc(vars(cls).get("__doc__") or ""), f"{cls.__name__} has no docstring of its own"
    for name, example in (("formula", "Σ nll / tokens"), ("value_unit", "nats per token")):
        assert getattr(metric, name), f'{cls.__name__} has no {name}; set it, as in {name} = "{example}"'


def direction(case: Case) -> None:
    """The class says which direction is better."""
    classes = [cls for cls in type(case.metric).__mro__ if issubclass(cls, TokenMetric) and cls not in _BASES]
    assert any("higher_is_better" in vars(cls) for cls in classes), (
        f"{type(case.metric).__name__} doesn't say which direction is better; set higher_is_better = True or False, or "
        "None if neither is"
    )


#: What a published metric promises besides `PROMISES`, and the function that checks it.
FURTHER_PROMISES: dict[str, Callable[[Case], None]] = {
    "every route gives the same value": all_routes,
    "scoring and sums are one graph": one_graph,
    "the class has a docstring, a formula and a unit": described,
    "the class says which direction is better": direction,
}
