"""The built-in metrics, a family a file, registered through the same hook as a third party's."""

from __future__ import annotations

from collections.abc import Callable

from ..hookspecs import hookimpl
from ..metric import TokenMetric
from .accuracy import TokenAccuracy
from .binary import BinaryCrossEntropy
from .bits_per_byte import BitsPerByte, BytePerplexity, WordPerplexity
from .calibration import ExpectedCalibrationError, MaximumCalibrationError, Overconfidence, RMSCalibrationError
from .calibration_split import CalibrationLoss, RefinementLoss
from .calibration_weighted import CalibrationWeightedCrossEntropy
from .class_calibration import ClasswiseCalibrationError, FullCalibrationError
from .cross_entropy import CrossEntropy, Perplexity
from .distribution import BrierScore, PredictionEntropy, ZLoss
from .divergence import (
    JensenShannonDivergence,
    KLDivergence,
    KLDivergenceQuantile,
    LogPerplexityRatio,
    ProbabilityChange,
    RMSProbabilityChange,
    SameTopToken,
    SoftCrossEntropy,
)
from .ranking import MeanReciprocalRank, TopKAccuracy
from .temperature import CrossEntropyAtOptimalTemperature, OptimalTemperature

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
    "MeanReciprocalRank",
    "OptimalTemperature",
    "Overconfidence",
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
        register(globals()[name])
