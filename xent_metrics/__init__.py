"""One definition of a language model's loss, exact to the last bit, wherever it is read.

metric = xent_metrics.get_metric("bits_per_byte", token_bytes=tokenizer)
metric.update(logits, target)      # logits[t] scores target[t]
metric.compute()                   # over every batch, rank and checkpoint: the same bits
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("xent-metrics")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

from .collection import TokenMetricCollection
from .hookspecs import hookimpl
from .metric import Binned, RatioMetric, TokenMetric
from .metrics import (
    BitsPerByte,
    BytePerplexity,
    CalibrationWeightedCrossEntropy,
    CrossEntropy,
    ExpectedCalibrationError,
    Perplexity,
    TokenAccuracy,
    WordPerplexity,
)
from .plugins import get_metric, list_metrics
from .scores import TokenScores, from_loglikelihoods
from .scoring import score_hidden_states, score_tokens
from .token_bytes import token_bytes

__all__ = [
    "Binned",
    "BitsPerByte",
    "BytePerplexity",
    "CalibrationWeightedCrossEntropy",
    "CrossEntropy",
    "ExpectedCalibrationError",
    "Perplexity",
    "RatioMetric",
    "TokenAccuracy",
    "TokenMetric",
    "TokenMetricCollection",
    "TokenScores",
    "WordPerplexity",
    "__version__",
    "from_loglikelihoods",
    "get_metric",
    "hookimpl",
    "list_metrics",
    "score_hidden_states",
    "score_tokens",
    "token_bytes",
]
