"""The built-in metrics, a family a file, registered through the same hook as a third party's."""

from __future__ import annotations

from collections.abc import Callable

from ..hookspecs import hookimpl
from ..metric import TokenMetric
from .accuracy import TokenAccuracy
from .bits_per_byte import BitsPerByte, BytePerplexity, WordPerplexity
from .calibration import CalibrationWeightedCrossEntropy, ExpectedCalibrationError
from .cross_entropy import CrossEntropy, Perplexity

__all__ = [
    "BitsPerByte",
    "BytePerplexity",
    "CalibrationWeightedCrossEntropy",
    "CrossEntropy",
    "ExpectedCalibrationError",
    "Perplexity",
    "TokenAccuracy",
    "WordPerplexity",
]


@hookimpl
def register_metrics(register: Callable[[type[TokenMetric]], None]) -> None:
    """Register every built-in metric."""
    for name in __all__:
        register(globals()[name])
