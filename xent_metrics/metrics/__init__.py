"""The built-in metrics, one family per file, registered through the same hook as a third party's."""

from __future__ import annotations

from collections.abc import Callable

from xent_metrics.hookspecs import hookimpl
from xent_metrics.metrics.accuracy import TokenAccuracy
from xent_metrics.metrics.binary import BinaryCrossEntropy
from xent_metrics.metrics.bits_per_byte import BitsPerByte, BytePerplexity, WordPerplexity
from xent_metrics.metrics.calibration import (
    ExpectedCalibrationError,
    MaximumCalibrationError,
    MeanConfidence,
    Overconfidence,
    RMSCalibrationError,
)
from xent_metrics.metrics.calibration_split import CalibrationLoss, RefinementLoss
from xent_metrics.metrics.calibration_weighted import CalibrationWeightedCrossEntropy
from xent_metrics.metrics.class_calibration import ClasswiseCalibrationError, FullCalibrationError
from xent_metrics.metrics.cross_entropy import CrossEntropy, Perplexity
from xent_metrics.metrics.distribution import BrierScore, PredictionEntropy, ZLoss
from xent_metrics.metrics.divergence import (
    JensenShannonDivergence,
    KLDivergence,
    KLDivergenceQuantile,
    LogPerplexityRatio,
    ProbabilityChange,
    RMSProbabilityChange,
    SameTopToken,
    SoftCrossEntropy,
)
from xent_metrics.metrics.pair_metric import PairMetric
from xent_metrics.metrics.ranking import MeanReciprocalRank, TopKAccuracy
from xent_metrics.metrics.temperature import CrossEntropyAtOptimalTemperature, OptimalTemperature
from xent_metrics.sums.metric import TokenMetric

__all__ = [
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
    "MeanConfidence",
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
]


@hookimpl
def register_metrics(register: Callable[[type[TokenMetric]], None]) -> None:
    """Register every built-in metric."""
    for name in __all__:
        if name != "PairMetric":  # the base of others
            register(globals()[name])
