"""How far intervals reach: Student's without skewness, further towards the tail, and never without end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from xent_metrics.analysis.skewed_t import reach, reliability_note


def jackknife(means):
    """Leave-one-out means, and equal influences."""
    y = torch.as_tensor(np.asarray(means, dtype=float))
    return (y.sum() - y) / (len(y) - 1), torch.ones(len(y))


def test_the_ends_solve_halls_transformation():
    """Found by a root finder, of moderately skewed documents."""
    y = np.random.default_rng(3).gamma(4, size=30)
    below, above, lean = reach(*jackknife(y), 0.95)
    gamma = stats.skew(y, bias=False)
    assert lean == pytest.approx(gamma / np.sqrt(30))
    a, error = lean / 3, stats.sem(y)
    quantile = stats.t.ppf(0.975, 29) * (1 + 2.56 * lean**2)
    for end, sign in ((below, 1), (-above, -1)):
        root = optimize.brentq(lambda t, q=sign * quantile: np.expm1(2 * a * t) / (2 * a) + a / 2 - q, -20, 20)
        assert end == pytest.approx(root * error, rel=1e-9)


def test_a_mirrored_sample_has_the_mirrored_interval():
    y = np.random.default_rng(0).exponential(size=25)
    below, above, lean = reach(*jackknife(y), 0.9)
    assert reach(*jackknife(-y), 0.9) == pytest.approx((above, below, -lean))
    assert above > below


@pytest.mark.parametrize("outlier", [1e1, 1e3, 1e9])
def test_the_interval_stays_finite_and_grows_with_an_outlier(outlier):
    y = np.append(np.linspace(0, 1, 11), outlier)
    below, above, lean = reach(*jackknife(y), 0.95)
    assert lean > 0.5
    assert 0 < below < above < 8 * stats.sem(y)
    assert reliability_note(12, lean).startswith("a few of the 12 documents decide it")


@pytest.mark.parametrize("means", [[1.0, 1.0, 1.0, 1.0], [0.1] * 12])
def test_equal_documents_have_no_skewness(means):
    below, above, lean = reach(*jackknife(means), 0.95)
    assert lean == 0
    assert below == above == pytest.approx(0, abs=1e-12)


def test_a_value_that_is_not_finite_has_no_interval():
    below, above, _ = reach(torch.tensor([1.0, torch.inf, 2.0, 3.0]), torch.ones(4), 0.95)
    assert np.isnan([below, above]).all()


def test_the_note_tells_few_documents_from_skewed_ones():
    assert reliability_note(9, 0.0) == "9 documents are few: coverage was simulated from 10 on"
    assert reliability_note(10, 0.49) == ""
    assert "score more documents" in reliability_note(10, -0.51)
