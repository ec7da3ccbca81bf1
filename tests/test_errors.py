"""Every error can be caught as the package's own, and as the built-in one that it is a kind of."""

from __future__ import annotations

import pytest

from xent_metrics import errors, get_metric, score_tokens

BUILT_IN = {
    "CapacityError": OverflowError,
    "CaptureError": RuntimeError,
    "ComparisonError": ValueError,
    "EngineError": RuntimeError,
    "InvalidInputError": ValueError,
    "InvalidTargetError": ValueError,
    "MetricOptionError": TypeError,
    "MissingExtraError": ImportError,
    "MissingScoreError": LookupError,
    "PluginError": Exception,
    "SyncError": RuntimeError,
    "TokenBytesError": ValueError,
    "UnknownMetricError": LookupError,
    "XentMetricsError": Exception,
}


def test_all_are_listed():
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert set(errors.__all__) == defined == set(BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_error_is_of_both_kinds(name):
    error = getattr(errors, name)
    assert issubclass(error, errors.XentMetricsError)
    assert issubclass(error, BUILT_IN[name])


def test_one_clause_catches_what_the_package_raises():
    for call in (
        lambda: get_metric("no_such"),
        lambda: get_metric("perplexity", base=2),
        lambda: score_tokens([[1]], [0]),
    ):
        with pytest.raises(errors.XentMetricsError):
            call()
