"""Analyses say how to install scipy if it is missing."""

import sys

import pytest

from xent_metrics.analysis.scipy_stats import scipy_stats
from xent_metrics.errors import MissingExtraError


def test_without_scipy_the_error_says_how_to_install_it(monkeypatch):
    assert scipy_stats().norm.cdf(0) == 0.5
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'xent-metrics\[analysis\]'"):
        scipy_stats()
