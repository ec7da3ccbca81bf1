"""Many p values at once: corrected by Holm's method and by Benjamini and Hochberg's.

Who asks twenty questions finds one p value below 0.05 by chance alone. Holm's adjusted p values keep the chance of any false
alarm among them at most 5 %, however they depend on each other. Benjamini and Hochberg's keep the expected share of false ones
among those that are found at most 5 %, if they are independent or rise and fall together, as a model's metrics do.

References: Holm (1979), A Simple Sequentially Rejective Multiple Test Procedure; Benjamini and Hochberg (1995), Controlling the
False Discovery Rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xent_metrics.analysis.comparison import Comparison, documents_needed
from xent_metrics.analysis.scipy_stats import scipy_stats

__all__ = ["benjamini_hochberg", "corrected", "holm", "resamples_needed"]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: the i-th smallest of m times m − i + 1, made monotone; nan is not part of the family.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    p = np.array(p_values, dtype=float)
    order = np.argsort(p, kind="stable")[: _tests(p)]
    p[order] = np.minimum(1, np.maximum.accumulate(p[order] * _multipliers(p)[order]))
    return [float(each) for each in p]


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's adjusted p values, by `scipy.stats.false_discovery_control`; nan is not part of the family.

    >>> [round(p, 3) for p in benjamini_hochberg([0.01, 0.04, 0.03, 0.005])]
    [0.02, 0.04, 0.04, 0.02]
    """
    p = np.array(p_values, dtype=float)
    if _tests(p):
        p[~np.isnan(p)] = scipy_stats().false_discovery_control(p[~np.isnan(p)], method="bh")
    return [float(each) for each in p]


def corrected(results: Sequence[Comparison]) -> list[Comparison]:
    """Comparisons that were made together, with p values corrected for their number.

    `documents_needed` then is what the corrected test needs: at the level 5 % divided by Holm's multiplier.

    Args:
        results: the family; corrections that they already carry are replaced.

    >>> corrected([])
    []
    """
    p_values = [result.p_value for result in results]
    adjusted = zip(holm(p_values), benjamini_hochberg(p_values), _multipliers(np.array(p_values)).tolist(), strict=True)
    return [
        replace(result, p_holm=by_holm, p_bh=by_bh, documents_needed=_needed(result, multiplier))
        for result, (by_holm, by_bh, multiplier) in zip(results, adjusted, strict=True)
    ]


def resamples_needed(tests: int, level: float = 0.05) -> int:
    """The fewest resamples whose smallest p value, 1/(R + 1), is significant after Holm's correction of this many tests.

    >>> resamples_needed(1), resamples_needed(1000)
    (19, 19999)
    """
    return math.ceil(tests / level) - 1


def _needed(result: Comparison, multiplier: float) -> float:
    difference, error = result.difference, result.standard_error
    if result.relative:  # on the scale of the test
        difference, error = math.log1p(difference), error / (1 + difference)
    return documents_needed(difference, error, result.documents, level=(1 - result.confidence_level) / multiplier)


def _tests(p: np.ndarray[Any, Any]) -> int:
    return int((~np.isnan(p)).sum())


def _multipliers(p: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """m − i + 1 for the i-th smallest of m p values; 1 for nan."""
    order = np.argsort(p, kind="stable")[: _tests(p)]
    multipliers = np.ones(len(p))
    multipliers[order] = np.arange(len(order), 0, -1)
    return multipliers
