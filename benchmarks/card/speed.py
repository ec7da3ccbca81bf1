"""Times and memory: rows of logits and hidden states beside peers and beside the floor, and launches of whole calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from card import peers
from card.cases import EXTRA_SCORES, Route, Sizes, eight, head_routes, make_hidden, make_logits, make_target, named
from card.device import Card, Timing, describe_error, medians
from card.record import Section
from xent_metrics import CrossEntropy, StandardError, score_hidden_states, score_tokens

Calls = dict[str, Callable[[], Any]]


def row_times(card: Card, sizes: Sizes, routes: list[Route], section: Section) -> None:
    """score_tokens and the peers; `read`, half of a copy's time, is the floor."""
    missing: dict[str, str] = {}
    losses = peers.row_losses(card, missing)
    for vocab_size in dict.fromkeys((sizes.vocab_size, *sizes.vocabularies)):
        for dtype in (torch.bfloat16, torch.float32):
            case = f"{sizes.rows:,} × {vocab_size:,} {named(dtype)}"
            bytes_read = sizes.rows * vocab_size * dtype.itemsize
            wide = 4 * sizes.rows * vocab_size  # what F.cross_entropy of .float() holds: a copy and ln p
            if not fits(card, section, case, 2 * bytes_read + 2 * wide) or section.out_of_time(case):
                continue
            logits, target = make_logits(card, sizes.rows, vocab_size, dtype), make_target(card, sizes.rows, vocab_size)
            copied = torch.empty_like(logits)
            calls: Calls = {"copy": lambda logits=logits, copied=copied: copied.copy_(logits)}
            for route in routes:
                calls[f"ours, {route.name}"] = route.bound(score_tokens, logits, target)
                calls[f"ours with entropy, {route.name}"] = route.bound(
                    score_tokens, logits, target, extra_scores={"entropy": EXTRA_SCORES["entropy"]}
                )
            calls |= {
                name: lambda loss=loss, logits=logits, target=target: loss(logits, target)
                for name, loss in losses.items()
            }
            found = medians(card, calls, repeats=sizes.repeats, deadline=section.deadline)
            copy = found.pop("copy")
            floor = copy.ms / 2 if isinstance(copy, Timing) else float("nan")
            section.note(f"{case}: read", ms=floor, gb_per_s=bytes_read / floor / 1e6)
            report(section, case, found, floor, calls, routes)
            del logits, target, copied, calls
            card.release()
    for name, why in missing.items():
        section.skip(name, f"not installed: {why}")


def fits(card: Card, section: Section, case: str, needed: int) -> bool:
    """True if the card has the memory; otherwise the case is skipped."""
    free = card.free_bytes()
    if needed > free:
        section.skip(case, f"needs {needed / 2**30:.1f} GiB of memory; {free / 2**30:.1f} GiB are free")
    return needed <= free


def report(
    section: Section, case: str, found: dict[str, Timing | str], floor: float, calls: Calls, routes: list[Route]
) -> None:
    """A row per call: times, the ratio to the floor, memory, and how far its nll is from that of torch's route."""
    own_name = f"ours, {routes[0].name}"
    own = nll_of(calls[own_name]) if isinstance(found[own_name], Timing) else None
    for name, timing in found.items():
        if isinstance(timing, str):
            section.skip(f"{case}: {name}", timing)
            continue
        for route in routes:
            route.forget()
        nll = nll_of(calls[name])
        numbers: dict[str, Any] = {
            "ms": timing.ms, "of_floor": timing.ms / floor, "host_ms": timing.host_ms, "extra_mib": timing.extra_mib,
            "runs": timing.runs,
        }  # fmt: skip
        if own is not None and nll is not None and nll.shape == own.shape:
            numbers["nll_from_ours"] = float((nll.double() - own.double()).abs().max())
        route = next((route for route in routes if name.endswith(f", {route.name}")), None)
        if route is not None and route.name != "torch":
            numbers["by_plugin"] = [hook for hook, answers in route.answers.items() if answers] or "no"
        section.note(f"{case}: {name}", **numbers)


def nll_of(call: Callable[[], Any]) -> Tensor | None:
    """What a call gives per row; None if that is something else."""
    result = call()
    result = getattr(result, "nll", result)
    return result if isinstance(result, Tensor) and result.ndim == 1 else None


def head_times(card: Card, sizes: Sizes, routes: list[Route], section: Section) -> None:
    """score_hidden_states and the peers; the floor is the bare matmul, and of few rows the read of its weights."""
    missing: dict[str, str] = {}
    losses = peers.head_losses(card, missing)
    vocab_size, dtype = sizes.vocab_size, torch.bfloat16
    routes = head_routes(card, routes, dtype)
    for rows in (sizes.rows, sizes.few_rows):
        case = f"{rows:,} × {sizes.hidden:,} → {vocab_size:,} {named(dtype)}"
        needed = 2 * vocab_size * sizes.hidden + 12 * rows * vocab_size  # the head; logits, also in float32, and ln p
        if not fits(card, section, case, needed) or section.out_of_time(case):
            continue
        hidden, head = make_hidden(card, rows, sizes.hidden, vocab_size, dtype)
        target = make_target(card, rows, vocab_size)
        calls: Calls = {
            "F.linear alone": lambda hidden=hidden, head=head: F.linear(hidden, head),
            "torch.mm alone, out_dtype float32": lambda hidden=hidden, head=head: torch.mm(
                hidden, head.T, out_dtype=torch.float32
            ),
        }
        for route in routes:
            calls[f"ours, {route.name}"] = route.bound(score_hidden_states, hidden, head, target)
        calls |= {
            name: lambda loss=loss, hidden=hidden, head=head, target=target: loss(hidden, head, target)
            for name, loss in losses.items()
        }
        found = medians(card, calls, repeats=sizes.repeats, deadline=section.deadline)
        bare = found["F.linear alone"]
        floor = bare.ms if isinstance(bare, Timing) else float("nan")
        section.note(f"{case}: matmul", ms=floor, tflops=2 * rows * vocab_size * sizes.hidden / floor / 1e9)
        report(section, case, found, floor, calls, routes)
        del hidden, head, target, calls
        card.release()
    for name, why in missing.items():
        section.skip(name, f"not installed: {why}")


def launches(card: Card, sizes: Sizes, routes: list[Route], section: Section) -> None:
    """Kernels, copies and the host's time of whole calls."""
    vocab_size = sizes.vocab_size
    logits = make_logits(card, sizes.rows, vocab_size, torch.bfloat16).view(4, -1, vocab_size)
    target = make_target(card, sizes.rows, vocab_size).view(4, -1)
    hidden, head = make_hidden(card, sizes.rows, sizes.hidden, vocab_size, torch.bfloat16)
    scores = score_tokens(logits, target, extra_scores=EXTRA_SCORES)
    for route in routes:
        metric, collection = CrossEntropy().to(card.device), eight(card)
        error = StandardError(CrossEntropy()).to(card.device)
        calls: Calls = {
            "score_tokens": lambda: score_tokens(logits, target),
            "score_hidden_states": lambda: score_hidden_states(hidden, head, target.reshape(-1)),
            "CrossEntropy.update": lambda metric=metric: metric.update(logits, target),
            "CrossEntropy.update(scores)": lambda metric=metric: metric.update(replace(scores)),
            "collection of 8, update": lambda collection=collection: collection.update(logits, target),
            "collection of 8, update(scores)": lambda collection=collection: collection.update(replace(scores)),
            "StandardError.update(scores)": lambda error=error: error.update(replace(scores)),
            "CrossEntropy.compute": lambda metric=metric: computed_again(metric),
        }
        for name, call in calls.items():
            what = f"{name}, {route.name}"
            if section.out_of_time(what):
                continue
            bound = route.bound(call)
            timing = medians(card, {what: bound}, repeats=min(5, sizes.repeats), deadline=section.deadline)[what]
            if isinstance(timing, str):
                section.skip(what, timing)
                continue
            try:
                counted: dict[str, Any] = dict(card.launches(bound))
            except Exception as failure:
                counted = {"profiler": describe_error(failure)}
            section.note(what, **counted, ms=timing.ms, host_ms=timing.host_ms)


def computed_again(metric: Any) -> Tensor:
    metric._computed = None  # torchmetrics 1.9 keeps the value
    return metric.compute()
