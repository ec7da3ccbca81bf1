"""One definition of a language model's loss, exact to the last bit, wherever it is read.

metric = xent_metrics.get_metric("bits_per_byte", token_bytes=tokenizer)
metric.update(logits, target)      # logits[t] scores target[t]
metric.compute()                   # over every batch, rank and checkpoint: the same bits

The public names are imported when they are first used (PEP 562), so that `xent --help` and `xent_metrics.errors` need no
torch. No module of the package imports from here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from xent_metrics import hookspecs

if TYPE_CHECKING:
    from xent_metrics.collection import TokenMetricCollection
    from xent_metrics.hookspecs import hookimpl
    from xent_metrics.metrics import (
        BinaryCrossEntropy,
        BitsPerByte,
        BrierScore,
        BytePerplexity,
        CalibrationLoss,
        CalibrationWeightedCrossEntropy,
        ClasswiseCalibrationError,
        CrossEntropy,
        CrossEntropyAtOptimalTemperature,
        ExpectedCalibrationError,
        FullCalibrationError,
        JensenShannonDivergence,
        KLDivergence,
        KLDivergenceQuantile,
        LogPerplexityRatio,
        MaximumCalibrationError,
        MeanReciprocalRank,
        OptimalTemperature,
        Overconfidence,
        PairMetric,
        Perplexity,
        PredictionEntropy,
        ProbabilityChange,
        RefinementLoss,
        RMSCalibrationError,
        RMSProbabilityChange,
        SameTopToken,
        SoftCrossEntropy,
        TokenAccuracy,
        TopKAccuracy,
        WordPerplexity,
        ZLoss,
    )
    from xent_metrics.plugins import get_metric, list_metrics
    from xent_metrics.scoring.pairs import score_pair
    from xent_metrics.scoring.score import score_hidden_states, score_tokens
    from xent_metrics.scoring.scores import ExtraScore, TokenScores, from_loglikelihoods
    from xent_metrics.scoring.token_bytes import token_bytes
    from xent_metrics.sums.metric import Binned, RatioMetric, TokenMetric
    from xent_metrics.version import __version__
    from xent_metrics.wrappers.grouped import Document, Frequency, Grouped, Position, in_groups
    from xent_metrics.wrappers.standard_error import StandardError

__all__ = [
    "BinaryCrossEntropy",
    "Binned",
    "BitsPerByte",
    "BrierScore",
    "BytePerplexity",
    "CalibrationLoss",
    "CalibrationWeightedCrossEntropy",
    "ClasswiseCalibrationError",
    "CrossEntropy",
    "CrossEntropyAtOptimalTemperature",
    "Document",
    "ExpectedCalibrationError",
    "ExtraScore",
    "Frequency",
    "FullCalibrationError",
    "Grouped",
    "JensenShannonDivergence",
    "KLDivergence",
    "KLDivergenceQuantile",
    "LogPerplexityRatio",
    "MaximumCalibrationError",
    "MeanReciprocalRank",
    "OptimalTemperature",
    "Overconfidence",
    "PairMetric",
    "Perplexity",
    "Position",
    "PredictionEntropy",
    "ProbabilityChange",
    "RMSCalibrationError",
    "RMSProbabilityChange",
    "RatioMetric",
    "RefinementLoss",
    "SameTopToken",
    "SoftCrossEntropy",
    "StandardError",
    "TokenAccuracy",
    "TokenMetric",
    "TokenMetricCollection",
    "TokenScores",
    "TopKAccuracy",
    "WordPerplexity",
    "ZLoss",
    "__version__",
    "from_loglikelihoods",
    "get_metric",
    "hookimpl",
    "in_groups",
    "list_metrics",
    "score_hidden_states",
    "score_pair",
    "score_tokens",
    "token_bytes",
]

#: The module that defines each public name.
_HOME = {
    **dict.fromkeys(["TokenMetricCollection"], "collection"),
    **dict.fromkeys(["hookimpl"], "hookspecs"),
    **dict.fromkeys(
        [
            "BinaryCrossEntropy",
            "BitsPerByte",
            "BrierScore",
            "BytePerplexity",
            "CalibrationLoss",
            "CalibrationWeightedCrossEntropy",
            "ClasswiseCalibrationError",
            "CrossEntropy",
            "CrossEntropyAtOptimalTemperature",
            "ExpectedCalibrationError",
            "FullCalibrationError",
            "JensenShannonDivergence",
            "KLDivergence",
            "KLDivergenceQuantile",
            "LogPerplexityRatio",
            "MaximumCalibrationError",
            "MeanReciprocalRank",
            "OptimalTemperature",
            "Overconfidence",
            "PairMetric",
            "Perplexity",
            "PredictionEntropy",
            "ProbabilityChange",
            "RMSCalibrationError",
            "RMSProbabilityChange",
            "RefinementLoss",
            "SameTopToken",
            "SoftCrossEntropy",
            "TokenAccuracy",
            "TopKAccuracy",
            "WordPerplexity",
            "ZLoss",
        ],
        "metrics",
    ),
    **dict.fromkeys(["get_metric", "list_metrics"], "plugins"),
    **dict.fromkeys(["score_pair"], "scoring.pairs"),
    **dict.fromkeys(["score_hidden_states", "score_tokens"], "scoring.score"),
    **dict.fromkeys(["ExtraScore", "TokenScores", "from_loglikelihoods"], "scoring.scores"),
    **dict.fromkeys(["token_bytes"], "scoring.token_bytes"),
    **dict.fromkeys(["Binned", "RatioMetric", "TokenMetric"], "sums.metric"),
    **dict.fromkeys(["__version__"], "version"),
    **dict.fromkeys(["Document", "Frequency", "Grouped", "Position", "in_groups"], "wrappers.grouped"),
    **dict.fromkeys(["StandardError"], "wrappers.standard_error"),
}


#: Submodules that are attributes after `import xent_metrics` alone.
_SUBMODULES = ("functional", "metrics")


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})


def _loaded_hooks() -> Any:
    from xent_metrics.plugins import plugins

    return plugins().manager.hook


hookspecs.set_hooks(_loaded_hooks)  # scoring asks for backends, and doesn't know who loads them
