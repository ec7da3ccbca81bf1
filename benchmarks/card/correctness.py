"""Agreement with float64, the same bits in any batch, and no waits: what must hold before a time means anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from card import cases
from card.cases import DTYPES, EXTRA_SCORES, Route, Sizes, columns, distance, named, same_bits
from card.device import Card, describe_error
from card.record import Section
from xent_metrics import CrossEntropy, StandardError, TokenScores, score_hidden_states, score_tokens

#: |found − expected| / (1 + |expected|) of scores in float32; sums over 262,144 classes come to a fraction of it.
ATOL = 5e-6
EXTRA_ATOL = 2e-5


def agreement(card: Card, sizes: Sizes, routes: list[Route], section: Section) -> None:
    """Scores beside float64, on rows with nan, infinities and ties."""
    for vocab_size in sizes.vocabularies:
        for dtype in DTYPES:
            logits, target = cases.hard_rows(card, sizes.checked_rows, vocab_size, dtype)
            for route in routes:
                what = f"{vocab_size:,} {named(dtype)}, {route.name}"
                if not section.out_of_time(what):
                    checked(section, what, _tokens_agree, route, logits, target)
            del logits
            card.release()
    for route in routes[1:]:
        checked(section, f"sums, {route.name}", _sums_agree, card, sizes, routes[0], route)
    for options in ({}, {"logit_scale": 0.7, "logit_softcap": 30.0, "bias": True}):
        for dtype in DTYPES:
            for route in cases.head_routes(card, routes, dtype):
                what = f"head{' with bias, scale, softcap' if options else ''} {named(dtype)}, {route.name}"
                if not section.out_of_time(what):
                    checked(section, what, _head_agrees, card, sizes, route, dtype, dict(options))
            card.release()


def checked(section: Section, what: str, check: Callable[..., tuple[bool, dict[str, Any]]], *arguments: Any) -> None:
    """One check; an exception is a failure of this check alone."""
    try:
        held, numbers = check(*arguments)
    except Exception as error:
        held, numbers = False, {"error": describe_error(error)}
    section.check(what, held, **numbers)


def _tokens_agree(route: Route, logits: Tensor, target: Tensor) -> tuple[bool, dict[str, Any]]:
    route.forget()
    found = route.call(score_tokens, logits, target)
    more = route.call(score_tokens, logits, target, extra_scores=EXTRA_SCORES)
    held, numbers = _agrees(found, logits.double(), target, ATOL)
    held &= all(distance(columns(more)[name], value) == 0 for name, value in columns(found).items())
    log_prob = torch.log_softmax(logits.double(), dim=-1)
    sound = ~log_prob.isnan().any(-1)
    given = {"log_prob": log_prob, "logits": logits.double()}
    for name, score in EXTRA_SCORES.items():
        off = distance(more.extra_scores[name][sound], score.function(given[score.of], target)[sound])
        numbers[name] = off
        held &= off <= EXTRA_ATOL
    return _judged(route, ("score_backend",), held, numbers)


def _sums_agree(card: Card, sizes: Sizes, torch_route: Route, route: Route) -> tuple[bool, dict[str, Any]]:
    """Exact sums of the same scores, nan and infinities among them: they have one right answer."""
    vocab_size = sizes.vocabularies[0]
    logits, target = cases.hard_rows(card, sizes.checked_rows, vocab_size, torch.float32)
    target[::5] = -100
    states = []
    for each in (torch_route, route):
        each.forget()
        scores = torch_route.call(score_tokens, logits[None], target[None], extra_scores=EXTRA_SCORES)
        collection, error = cases.eight(card), StandardError(CrossEntropy()).to(card.device)
        for metric in (*collection.members().values(), error):
            each.call(metric.update, replace(scores))
            states.append(metric.state)
    half = len(states) // 2
    same = all(torch.equal(one, two) for one, two in zip(states[:half], states[half:], strict=True))
    return _judged(route, ("exact_sums_backend",), same, {})


def _head_agrees(
    card: Card, sizes: Sizes, route: Route, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[bool, dict[str, Any]]:
    vocab_size = sizes.vocabularies[0]
    hidden, head = cases.make_hidden(card, 2 * sizes.few_rows, sizes.hidden, vocab_size, dtype)
    target = cases.make_target(card, 2 * sizes.few_rows, vocab_size)
    logits = hidden.double() @ head.double().T
    if options.pop("bias", False):
        options["bias"] = head[:, 0].clone()
        logits = options["logit_scale"] * (logits + options["bias"].double())
        logits = options["logit_softcap"] * (logits / options["logit_softcap"]).tanh()
    route.forget()
    found = route.call(score_hidden_states, hidden, head, target, **options)
    # Logits may be rounded to the head's dtype: half an ulp of the largest, for the target and for the maximum.
    rounding = torch.finfo(dtype).eps * float(logits.abs().max())
    held, numbers = _agrees(found, logits, target, 1e-4 + (rounding if dtype != torch.float32 else 0.0), ties=False)
    return _judged(route, ("linear_cross_entropy_backend",), held, numbers)


def _agrees(
    found: TokenScores, logits: Tensor, target: Tensor, tolerance: float, ties: bool = True
) -> tuple[bool, dict[str, Any]]:
    """nll, confidence and correct beside those of float64 logits; without `ties`, near ties may fall either way."""
    log_prob = torch.log_softmax(logits, dim=-1)
    expected = -log_prob.gather(-1, target[:, None]).squeeze(-1)
    largest = logits.amax(-1, keepdim=True)
    place = torch.arange(logits.shape[-1], device=logits.device)
    first = torch.where(logits == largest, place, logits.shape[-1]).amin(-1)
    correct = (first == target) & ~expected.isnan()
    assert found.correct is not None
    assert found.confidence is not None
    numbers: dict[str, Any] = {
        "nll": distance(found.nll, expected),
        "confidence": distance(found.confidence.log(), log_prob.amax(-1)),
        "wrongly_correct": int((found.correct != correct).sum()),
    }
    near = (largest.squeeze(-1) - logits.gather(-1, target[:, None]).squeeze(-1)) <= 4 * tolerance
    wrong = (found.correct != correct) & ~(near & (not ties))
    return numbers["nll"] <= tolerance and numbers["confidence"] <= tolerance and not wrong.any(), numbers


def _judged(route: Route, hooks: tuple[str, ...], held: bool, numbers: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Not held either if the plugin implements these hooks but declined: torch's scores would pass for its own."""
    declined = route.declined(*hooks)
    return held and not declined, numbers | ({"declined": declined} if declined else {})


# Bits.


def bits(card: Card, sizes: Sizes, routes: list[Route], section: Section) -> None:
    """A row's bits depend on the row alone: in any batch, at any address, with any strides, every time."""
    for vocab_size in sizes.vocabularies[:2]:
        for dtype in DTYPES:
            for route in routes:
                what = f"{vocab_size:,} {named(dtype)}, {route.name}"
                if not section.out_of_time(what):
                    checked(section, what, _tokens_same_bits, card, sizes, route, vocab_size, dtype)
            card.release()
    for dtype in DTYPES:
        for route in cases.head_routes(card, routes, dtype):
            what = f"head {named(dtype)}, {route.name}"
            if not section.out_of_time(what):
                _head_same_bits(card, sizes, route, dtype, section, what)
        card.release()


def _tokens_same_bits(
    card: Card, sizes: Sizes, route: Route, vocab_size: int, dtype: torch.dtype
) -> tuple[bool, dict[str, Any]]:
    rows = sizes.batches[-1]
    logits, target = cases.make_logits(card, rows, vocab_size, dtype), cases.make_target(card, rows, vocab_size)
    extra_scores = {"entropy": EXTRA_SCORES["entropy"]}
    route.forget()
    whole = columns(route.call(score_tokens, logits, target, extra_scores=extra_scores))
    differ = []
    for name, view, index in variants(card, sizes, logits):
        found = columns(route.call(score_tokens, view, target[index], extra_scores=extra_scores))
        if not all(same_bits(value, whole[key][index]) for key, value in found.items()):
            differ.append(name)
    return _judged(route, ("score_backend",), not differ, {"differ": differ})


def variants(card: Card, sizes: Sizes, logits: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, the same rows in another batch or at another place in memory, which rows they are)."""
    rows, vocab_size = logits.shape
    everything = torch.arange(rows, device=card.device)
    for count in sizes.batches:
        yield f"the first {count}", logits[:count], everything[:count]
    for row in range(0, rows, max(1, rows // 9)):
        yield f"row {row} alone", logits[row : row + 1], everything[row : row + 1]
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).to(card.device)
    yield "permuted", logits[order], order
    for offset in (1, 2, 3):
        memory = logits.new_empty(rows * vocab_size + offset)
        yield f"{offset} elements on", memory[offset:].view(rows, vocab_size).copy_(logits), everything
    for wider in (1, 3):
        view = logits.new_empty(rows, vocab_size + wider)[:, :vocab_size].copy_(logits)
        yield f"rows {wider} further apart", view, everything
    yield "every second column", logits.new_empty(rows, 2 * vocab_size)[:, ::2].copy_(logits), everything
    yield "columns first", logits.T.contiguous().T, everything
    for time in ("second", "third"):
        yield f"the {time} time", logits, everything


def _head_same_bits(card: Card, sizes: Sizes, route: Route, dtype: torch.dtype, section: Section, what: str) -> None:
    """The bits of hidden states' rows. A matmul in torch doesn't promise them, so only a plugin's own are judged."""
    vocab_size, rows = sizes.vocabularies[0], sizes.batches[-1]
    hidden, head = cases.make_hidden(card, rows, sizes.hidden, vocab_size, dtype)
    target = cases.make_target(card, rows, vocab_size)
    route.forget()
    try:
        whole = columns(route.call(score_hidden_states, hidden, head, target))
        differ = []
        for count in sizes.batches:
            found = columns(route.call(score_hidden_states, hidden[:count], head, target[:count]))
            if not all(same_bits(value, whole[key][:count]) for key, value in found.items()):
                differ.append(f"the first {count}")
    except Exception as error:
        section.check(what, False, error=describe_error(error))
        return
    if route.answers["linear_cross_entropy_backend"]:
        section.check(what, not differ, differ=differ)
    else:
        section.note(f"{what} (torch's matmul: not promised)", differ=differ)


# Waits.


def waits(card: Card, sizes: Sizes, routes: list[Route], section: Section) -> None:
    """No update waits for the card, after a first one that may compile."""
    vocab_size = sizes.vocabularies[0]
    logits = cases.make_logits(card, 4 * sizes.few_rows, vocab_size, torch.bfloat16).view(4, sizes.few_rows, vocab_size)
    target = cases.make_target(card, 4 * sizes.few_rows, vocab_size).view(4, sizes.few_rows)
    hidden, head = cases.make_hidden(card, sizes.few_rows, sizes.hidden, vocab_size, torch.bfloat16)
    scores = score_tokens(logits, target, extra_scores=EXTRA_SCORES)
    for route in routes:
        metric, collection = CrossEntropy().to(card.device), cases.eight(card)
        error, from_scores = StandardError(CrossEntropy()).to(card.device), cases.eight(card)
        calls: dict[str, Callable[[], Any]] = {
            "score_tokens": lambda: score_tokens(logits, target),
            "score_tokens with extra scores": lambda: score_tokens(logits, target, extra_scores=EXTRA_SCORES),
            "score_hidden_states": lambda: score_hidden_states(hidden, head, target[0]),
            "CrossEntropy.update": lambda metric=metric: metric.update(logits, target),
            "collection of 8, update": lambda collection=collection: collection.update(logits, target),
            "collection of 8, update(scores)": lambda metric=from_scores: metric.update(replace(scores)),
            "StandardError.update": lambda error=error: error.update(logits, target),
        }
        for name, call in calls.items():
            what = f"{name}, {route.name}"
            if not section.out_of_time(what):
                checked(section, what, _without_waiting, card, route, call)


def _without_waiting(card: Card, route: Route, call: Callable[[], Any]) -> tuple[bool, dict[str, Any]]:
    route.call(call)
    card.synchronize()
    with card.no_waits():
        route.call(call)
    return True, {}
