"""What the numbers are worth: standard errors, intervals, comparisons, pictures."""

from .comparison import Comparison, compare, same_documents
from .intervals import Interval, bootstrap, delta_interval
from .standard_error import StandardError, standard_error, standard_error_from_moments

__all__ = [
    "Comparison",
    "Interval",
    "StandardError",
    "bootstrap",
    "compare",
    "delta_interval",
    "same_documents",
    "standard_error",
    "standard_error_from_moments",
]
