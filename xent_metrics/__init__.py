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
from .grouped import Document, Frequency, Grouped, Position, in_groups
from .hookspecs import hookimpl
from .metric import Binned, RatioMetric, TokenMetric
from .metrics import (
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
    MaximumCalibrationError,
    MeanReciprocalRank,
    OptimalTemperature,
    Overconfidence,
    Perplexity,
    PredictionEntropy,
    RefinementLoss,
    RMSCalibrationError,
    TokenAccuracy,
    TopKAccuracy,
    WordPerplexity,
    ZLoss,
)
from .pairs import PairMetric, score_pair
from .plugins import get_metric, list_metrics
from .row_scores import RowScore
from .scores import TokenScores, from_loglikelihoods
from .scoring import score_hidden_states, score_tokens
from .token_bytes import token_bytes

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
    "Frequency",
    "FullCalibrationError",
    "Grouped",
    "MaximumCalibrationError",
    "MeanReciprocalRank",
    "OptimalTemperature",
    "Overconfidence",
    "PairMetric",
    "Perplexity",
    "Position",
    "PredictionEntropy",
    "RMSCalibrationError",
    "RatioMetric",
    "RefinementLoss",
    "RowScore",
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
