"""A captured CUDA graph: it raises while it is captured, or its replays are right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from card.cases import EXTRA_SCORES, Route, Sizes, columns, eight, make_logits, make_target, same_bits
from card.correctness import checked
from card.device import Card, describe_error
from card.record import Section
from xent_metrics import CrossEntropy, TokenMetricCollection, score_tokens


def graphs(card: Card, sizes: Sizes, routes: list[Route], section: Section) -> None:
    """Replays of captured calls beside the calls themselves, on three batches."""
    if card.dry:
        section.skip("graphs", "a CPU captures no CUDA graphs")
        return
    for route in routes:
        metrics = {"CrossEntropy.update": CrossEntropy().to(card.device), "collection of 8, update": eight(card)}
        if not section.out_of_time(f"score_tokens, {route.name}"):
            checked(section, f"score_tokens, {route.name}", _scores, card, sizes, route)
        for name, metric in metrics.items():
            if not section.out_of_time(f"{name}, {route.name}"):
                checked(section, f"{name}, {route.name}", _update, card, sizes, route, metric)


def _scores(card: Card, sizes: Sizes, route: Route) -> tuple[bool, dict[str, Any]]:
    batches, logits, target = _batches(card, sizes)
    try:
        replay = card.capture(route.bound(score_tokens, logits, target, extra_scores=EXTRA_SCORES))
    except Exception as error:
        return True, {"raises": describe_error(error)}
    held = True
    for batch in batches:
        logits.copy_(batch[0])
        target.copy_(batch[1])
        found, expected = columns(replay()), columns(route.call(score_tokens, *batch, extra_scores=EXTRA_SCORES))
        held &= all(same_bits(value, expected[key]) for key, value in found.items())
    return held, {"replays": len(batches)}


def _update(card: Card, sizes: Sizes, route: Route, metric: Any) -> tuple[bool, dict[str, Any]]:
    batches, logits, target = _batches(card, sizes)

    def value() -> dict[str, float]:
        found = metric.compute()
        found = found if isinstance(found, dict) else {metric.name: found}
        return {name: float(each) for name, each in found.items()}

    for batch in batches:
        route.call(metric.update, *batch)
    expected = value()
    metric.reset()
    try:
        replay = card.capture(route.bound(metric.update, logits, target))  # which updates once, before it captures
    except Exception as error:
        return True, {"raises": describe_error(error)}
    for batch in batches[1:]:
        logits.copy_(batch[0])
        target.copy_(batch[1])
        replay()
    for member in metric.members().values() if isinstance(metric, TokenMetricCollection) else [metric]:
        member._computed = None  # torchmetrics doesn't know that replays update
    return value() == expected, {"replays": len(batches) - 1}


def _batches(card: Card, sizes: Sizes) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]:
    """Three batches, and the memory that a graph reads, with the first of them."""
    rows, vocab_size = sizes.few_rows, sizes.vocabularies[0]
    batches = [
        (make_logits(card, rows, vocab_size, torch.bfloat16, 10 + seed), make_target(card, rows, vocab_size, 20 + seed))
        for seed in range(3)
    ]
    return batches, batches[0][0].clone(), batches[0][1].clone()
