"""Sizes, inputs and routes that the sections share."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from card.device import Card
from xent_metrics import TokenMetricCollection, TokenScores, hookimpl
from xent_metrics.metrics import BrierScore, MeanReciprocalRank, PredictionEntropy, ZLoss
from xent_metrics.plugins import Plugin, Plugins, use_plugins

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EXTRA_SCORES = {
    name: score
    for metric in (PredictionEntropy(), BrierScore(), ZLoss(), MeanReciprocalRank())
    for name, score in metric.extra_scores().items()
}
EIGHT = [
    "cross_entropy", "perplexity", "token_accuracy", "expected_calibration_error", "calibration_weighted_cross_entropy",
    "prediction_entropy", "brier_score", "mean_reciprocal_rank",
]  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How large the cases are."""

    rows: int = 8192  # that are timed
    vocabularies: tuple[int, ...] = (50_257, 128_256, 262_144)
    hidden: int = 4096
    few_rows: int = 256  # of hidden states, where reading the weights is the floor
    checked_rows: int = 512
    batches: tuple[int, ...] = (1, 2, 3, 7, 8, 31, 32, 33, 64, 100, 128, 255, 256, 257, 513, 1000)
    repeats: int = 15
    layers: int = 16  # a Llama of 1B parameters
    width: int = 2048
    texts: int = 48
    questions: int = 100
    text_length: int = 6000

    @property
    def vocab_size(self) -> int:
        """The vocabulary where one is enough: Llama 3's."""
        return self.vocabularies[min(1, len(self.vocabularies) - 1)]


#: Triton's interpreter takes up to a tenth of a second per row.
TINY = Sizes(
    rows=4, vocabularies=(515,), hidden=16, few_rows=2, checked_rows=20, batches=(1, 2, 4), repeats=1, layers=2,
    width=32, texts=2, questions=2, text_length=400,
)  # fmt: skip


@dataclass(frozen=True)
class Route:
    """One way to score: by torch, or with a plugin's backends."""

    name: str
    plugins: Plugins
    answers: Counter[str] = field(default_factory=Counter)  # how often a backend gave a result, by hook
    refusals: Counter[str] = field(default_factory=Counter)  # how often it was asked and gave none
    variables: dict[str, str] = field(default_factory=dict)  # of the environment

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        with mock.patch.dict(os.environ, self.variables), use_plugins(self.plugins):
            return function(*args, **options)

    def bound(self, function: Callable[..., Any], *args: Any, **options: Any) -> Callable[[], Any]:
        return functools.partial(self.call, function, *args, **options)

    def forget(self) -> None:
        """Count from 0 again."""
        self.answers.clear()
        self.refusals.clear()

    def declined(self, *hooks: str) -> list[str]:
        """Those of the hooks that the plugin implements, but was asked for in vain since `forget`."""
        hook = self.plugins.manager.hook
        implemented = [name for name in hooks if any(not each.wrapper for each in getattr(hook, name).get_hookimpls())]
        return [name for name in implemented if self.refusals[name] and not self.answers[name]]


class Witness:
    """Counts what a backend took: a route that fell back to torch must not pass for the plugin's."""

    def __init__(self, route: Route) -> None:
        self._route = route

    def _count(self, hook: str, result: Any) -> Any:
        (self._route.refusals if result is None else self._route.answers)[hook] += 1
        return result

    @hookimpl(wrapper=True)
    def score_backend(self) -> Any:
        return self._count("score_backend", (yield))

    @hookimpl(wrapper=True)
    def linear_cross_entropy_backend(self) -> Any:
        return self._count("linear_cross_entropy_backend", (yield))

    @hookimpl(wrapper=True, optionalhook=True)
    def exact_sums_backend(self) -> Any:
        return self._count("exact_sums_backend", (yield))


def make_route(name: str, *modules: Any, **variables: str) -> Route:
    """A route with these modules as its plugins and these variables in its environment.

    Raises:
        RuntimeError: a plugin was set aside.
    """
    route = Route(name, Plugins(), variables=variables)
    for module in (*modules, Witness(route)):
        plugin = Plugin(type(module).__name__ if isinstance(module, Witness) else name, name, plugin_version(name))
        route.plugins.add(plugin, module)
        if plugin.error is not None:
            raise RuntimeError(f"the plugin of route {name!r} was set aside") from plugin.error
    return route


def plugin_version(name: str) -> str:
    try:
        return version(f"xent-metrics-{name}")
    except PackageNotFoundError:
        return "source"


def find_routes() -> tuple[list[Route], dict[str, str]]:
    """The routes that are there, torch's first, and why others aren't.

    Raises:
        RuntimeError: the Triton plugin is there, but was set aside.
    """
    routes = [make_route("torch")]
    try:
        module = importlib.import_module("xent_metrics_triton")
    except ImportError as error:
        return routes, {"xent-metrics-triton": str(error)}
    return [*routes, make_route("triton", module)], {}


def head_routes(card: Card, routes: list[Route], dtype: torch.dtype) -> list[Route]:
    """The routes for hidden states: these, each plugin's kernel for rows under torch's matmul, and Triton's fused kernel.

    A dry run leaves the fused kernel out in bfloat16: the interpreter of Triton 3.9 multiplies its bits as integers.
    """
    found = list(routes)
    for route in routes:
        hook = route.plugins.manager.hook.score_backend
        for each in hook.get_hookimpls():
            if not each.wrapper:
                rows = ModuleType("rows")
                vars(rows)["score_backend"] = each.function
                found.append(make_route(f"{route.name} rows", rows))
        if route.name == "triton" and not (card.dry and dtype == torch.bfloat16):
            found.append(
                make_route("triton fused", sys.modules["xent_metrics_triton"], XENT_METRICS_TRITON_HEAD="fused")
            )
    return found


# Inputs.


def seeded(card: Card, seed: int = 0) -> torch.Generator:
    return torch.Generator(card.device).manual_seed(seed)


def make_logits(card: Card, rows: int, vocab_size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.empty(rows, vocab_size, dtype=dtype, device=card.device).normal_(0, 3, generator=seeded(card, seed))


def make_target(card: Card, rows: int, vocab_size: int, seed: int = 1) -> Tensor:
    return torch.randint(vocab_size, (rows,), device=card.device, generator=seeded(card, seed))


def make_hidden(card: Card, rows: int, hidden: int, vocab_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Hidden states and a head whose logits have a spread of about 3."""
    states = torch.empty(rows, hidden, dtype=dtype, device=card.device).normal_(generator=seeded(card, 2))
    head = torch.empty(vocab_size, hidden, dtype=dtype, device=card.device)
    return states, head.normal_(0, 3 / hidden**0.5, generator=seeded(card, 3))


def hard_rows(card: Card, rows: int, vocab_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows of spreads from 0.1 to 30; the first ones have nan, infinities, ties, and gaps of 1e4."""
    logits = make_logits(card, rows, vocab_size, torch.float32) / 3
    logits = (logits * torch.logspace(-1, 1.5, rows, device=card.device)[:, None]).to(dtype)
    target, last = make_target(card, rows, vocab_size), vocab_size - 1
    inf, nan, high = float("inf"), float("nan"), 1e4
    whole, rest = slice(None), slice(6, None)
    edits: list[tuple[int, list[tuple[int | slice, float]]]] = [  # of row 0, 1, …: its target, and values by column
        (5, [(3, nan)]),
        (5, [(5, nan)]),
        (5, [(last, nan)]),
        (5, [(5, inf)]),
        (5, [(7, inf)]),
        (5, [(5, inf), (7, inf)]),
        (5, [(rest, -inf)]),
        (5, [(5, -inf)]),
        (5, [(whole, -inf)]),
        (5, [(whole, -inf), (5, 2.0)]),
        (0, [(whole, 1.5)]),
        (last, [(whole, 1.5)]),
        (5, [(5, high), (9, high)]),
        (9, [(5, high), (9, high)]),
        (9, [(9, high), (last, high)]),
        (last, [(last, high)]),
        (5, [(9, high), (5, -high)]),
        (5, [(whole, -high)]),
        (5, [(rest, -inf), (3, nan), (7, inf)]),
    ]
    for row, (index, values) in enumerate(edits):
        target[row] = index
        for column, value in values:
            logits[row, column] = value
    return logits, target


def eight(card: Card) -> TokenMetricCollection:
    return TokenMetricCollection(EIGHT).to(card.device)


# Comparisons.


def columns(scores: TokenScores) -> dict[str, Tensor]:
    """The scores that are compared, by name."""
    assert scores.confidence is not None
    assert scores.correct is not None
    return {
        "nll": scores.nll, "confidence": scores.confidence, "correct": scores.correct, **scores.extra_scores,
    }  # fmt: skip


def same_bits(one: Tensor, two: Tensor) -> bool:
    """Equal values, zeros with their signs, and nan where the other has nan."""
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, two)
    whole = {4: torch.int32, 8: torch.int64}[one.element_size()]
    return bool(((one.view(whole) == two.view(whole)) | (one.isnan() & two.isnan())).all())


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest |found − expected| / (1 + |expected|); inf if nan or infinities are elsewhere."""
    found, expected = found.double(), expected.double()
    odd = ~expected.isfinite()
    if not torch.equal(found[odd].nan_to_num(nan=0.5), expected[odd].nan_to_num(nan=0.5)) or found[~odd].isnan().any():
        return float("inf")
    off = (found[~odd] - expected[~odd]).abs() / (1 + expected[~odd].abs())
    return float(off.max()) if off.numel() else 0.0


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
