"""Standard errors, confidence intervals, and comparisons of runs, with a report."""

from xent_metrics.analysis.comparison import Comparison, compare, same_documents
from xent_metrics.analysis.intervals import Interval, bootstrap, delta_interval
from xent_metrics.analysis.multiplicity import benjamini_hochberg, corrected, holm
from xent_metrics.wrappers.standard_error import StandardError, standard_error, standard_error_from_moments

__all__ = [
    "Comparison",
    "Interval",
    "StandardError",
    "benjamini_hochberg",
    "bootstrap",
    "compare",
    "corrected",
    "delta_interval",
    "holm",
    "same_documents",
    "standard_error",
    "standard_error_from_moments",
]
