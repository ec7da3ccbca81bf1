"""Student's quantiles for estimates whose documents are skewed: how far an interval reaches to either side.

T = (θ̂ − θ)/SE leans by about γ/√D if the documents have skewness γ, and a symmetric interval misses on one side: a long tail of
bad documents that the sample happens to lack. Hall's transformation h(T) = (e^{2aT} − 1)/2a + a/2 with a = γ/(3√D) takes the
lean away, so the ends are Student's quantiles through its inverse. γ is the adjusted skewness of the documents' influences.

Two things were chosen by simulation (benchmarks/interval_coverage.py). The quantile is widened by 1 + (1.6 γ/√D)², since a
skewness that is estimated from few documents is too small where it matters. And γ/√D counts up to 0.5, and no further than to
where the inverse nears infinity. Beyond, `reliability_note` says that the interval may not cover. It can't say so of a tail of
which the sample holds nothing, and no interval can cover for that.

Reference: Hall (1992), On the Removal of Skewness by Transformation, JRSS B 54.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from xent_metrics.analysis.jackknife import degrees_of_freedom, jackknife_error
from xent_metrics.analysis.scipy_stats import scipy_stats

__all__ = ["FEWEST_DOCUMENTS", "Reach", "lean_of", "reach", "reliability_note"]

FEWEST_DOCUMENTS = 10  # the fewest for which coverage was simulated
_LEAST_ARGUMENT = 0.2  # of the inverse's logarithm
_MOST_LEAN = 0.5  # γ/√D beyond which the sample is too small for its tail


class Reach(NamedTuple):
    """How far an interval reaches below and above its estimate; `lean` is γ/√D."""

    below: float
    above: float
    lean: float


def reach(estimates: Tensor, influences: Tensor, confidence_level: float) -> Reach:
    """The reach of a jackknife interval, from the leave-one-out estimates and the documents' influences, ``(D,)`` each.

    Without skewness it is Student's quantile, for the effective number of documents, times the jackknife's error on both sides.

    >>> import torch
    >>> alike = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])         # 2.78 · 0.57 on both sides, for 5 documents
    >>> reach(alike, torch.ones(5), 0.95)
    Reach(below=7.85..., above=7.85..., lean=0.0)
    >>> tailed = -torch.tensor([1.0, 2.0, 3.0, 4.0, 9.0])       # the last document raises the value
    >>> below, above, lean = reach(tailed, torch.ones(5), 0.95)
    >>> below < above, lean > 0
    (True, True)
    """
    error, lean = jackknife_error(estimates), lean_of(estimates)
    degrees = [degrees_of_freedom(influences), len(estimates) - 1]
    effective, plain = (float(each) for each in scipy_stats().t.ppf(0.5 + confidence_level / 2, degrees))
    if not math.isfinite(effective * error):
        return Reach(math.nan, math.nan, lean)
    counted = min(_MOST_LEAN, max(-_MOST_LEAN, lean))
    quantile = max(effective, plain * (1 + (1.6 * counted) ** 2))  # a few long documents raise both: count them once
    # 1 + 2a(−q − a/2) = least, solved for a ≥ 0
    furthest = math.sqrt(quantile**2 + 1 - _LEAST_ARGUMENT) - quantile
    a = min(furthest, max(-furthest, counted / 3))
    return Reach(_untransformed(quantile, a) * error, -_untransformed(-quantile, a) * error, lean)


def reliability_note(documents: int, lean: float) -> str:
    """Why an interval may not cover as often as it says; empty if nothing speaks against it."""
    if documents < FEWEST_DOCUMENTS:
        return f"{documents} documents are few: coverage was simulated from {FEWEST_DOCUMENTS} on"
    if abs(lean) > _MOST_LEAN:
        return f"a few of the {documents} documents decide it: the interval may be too short; score more documents"
    return ""


def lean_of(estimates: Tensor) -> float:
    """The adjusted skewness of the documents' influences, divided by √D; 0 for fewer than three, or if all are alike."""
    documents = len(estimates)
    if documents < 3 or not bool(estimates.isfinite().all()):
        return 0.0
    influences = estimates.mean() - estimates
    square = float((influences**2).mean())
    if math.sqrt(square) <= 1e-13 * float(estimates.abs().max()):  # rounding
        return 0.0
    skewness = float((influences**3).mean()) / square**1.5
    return float(skewness * math.sqrt(documents - 1) / (documents - 2))


def _untransformed(quantile: float, a: float) -> float:
    """T of which Hall's transformation is this quantile."""
    return math.log1p(2 * a * (quantile - a / 2)) / (2 * a) if abs(a) > 1e-9 else quantile
