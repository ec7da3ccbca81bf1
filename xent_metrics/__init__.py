"""One definition of a language model's loss, exact to the last bit, wherever it is read.

metric = xent_metrics.get_metric("bits_per_byte", token_bytes=tokenizer)
metric.update(logits, target)      # logits[t] scores target[t]
metric.compute()                   # over every batch, rank and checkpoint: the same bits

Here are the names that most programs need. All metrics are in `xent_metrics.metrics`, one-line functions in
`xent_metrics.functional`. Names are imported when they are first used (PEP 562), so that `xent --help` and
`xent_metrics.errors` need no torch. No module of the package imports from here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from xent_metrics import hookspecs

if TYPE_CHECKING:
    from xent_metrics import functional, metrics
    from xent_metrics.collection import TokenMetricCollection
    from xent_metrics.hookspecs import hookimpl
    from xent_metrics.metrics import (
        BitsPerByte,
        CalibrationWeightedCrossEntropy,
        CrossEntropy,
        ExpectedCalibrationError,
        PairMetric,
        Perplexity,
        TokenAccuracy,
    )
    from xent_metrics.plugins import get_metric, list_metrics
    from xent_metrics.scoring.pairs import score_pair
    from xent_metrics.scoring.score import score_hidden_states, score_tokens
    from xent_metrics.scoring.scores import ExtraScore, TokenScores, from_loglikelihoods
    from xent_metrics.scoring.token_bytes import token_bytes
    from xent_metrics.sums.metric import TokenMetric
    from xent_metrics.sums.ratio import RatioMetric
    from xent_metrics.sums.shared_sums import NATS, TOKENS, SharedSum
    from xent_metrics.sums.terms import Binned
    from xent_metrics.version import __version__
    from xent_metrics.wrappers import Document, Frequency, Grouped, Position, StandardError, in_groups

__all__ = [
    "NATS",
    "TOKENS",
    "Binned",
    "BitsPerByte",
    "CalibrationWeightedCrossEntropy",
    "CrossEntropy",
    "Document",
    "ExpectedCalibrationError",
    "ExtraScore",
    "Frequency",
    "Grouped",
    "PairMetric",
    "Perplexity",
    "Position",
    "RatioMetric",
    "SharedSum",
    "StandardError",
    "TokenAccuracy",
    "TokenMetric",
    "TokenMetricCollection",
    "TokenScores",
    "__version__",
    "from_loglikelihoods",
    "functional",
    "get_metric",
    "hookimpl",
    "in_groups",
    "list_metrics",
    "metrics",
    "score_hidden_states",
    "score_pair",
    "score_tokens",
    "token_bytes",
]

#: The names that each module gives to the package.
_NAMES = {
    "collection": "TokenMetricCollection",
    "hookspecs": "hookimpl",
    "metrics": "BitsPerByte CalibrationWeightedCrossEntropy CrossEntropy ExpectedCalibrationError PairMetric Perplexity "
    "TokenAccuracy",
    "plugins": "get_metric list_metrics",
    "scoring.pairs": "score_pair",
    "scoring.score": "score_hidden_states score_tokens",
    "scoring.scores": "ExtraScore TokenScores from_loglikelihoods",
    "scoring.token_bytes": "token_bytes",
    "sums.metric": "TokenMetric",
    "sums.ratio": "RatioMetric",
    "sums.shared_sums": "NATS TOKENS SharedSum",
    "sums.terms": "Binned",
    "version": "__version__",
    "wrappers": "Document Frequency Grouped Position StandardError in_groups",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
_MODULES = ("functional", "metrics")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _loaded_hooks() -> Any:
    from xent_metrics.plugins import plugins

    return plugins().manager.hook


hookspecs.set_hooks(_loaded_hooks)  # scoring asks for backends without knowing who loads them
