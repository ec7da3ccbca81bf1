"""Every error can be caught as the package's own, and as the built-in one that it is a kind of."""

from __future__ import annotations

import pickle

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


#: What users look up never changes; a new error gets the next number.
CODES = {
    "XentMetricsError": "E000",
    "InvalidInputError": "E001",
    "InvalidTargetError": "E002",
    "CapacityError": "E003",
    "CaptureError": "E004",
    "MissingScoreError": "E005",
    "EngineError": "E006",
    "UnknownMetricError": "E007",
    "ComparisonError": "E008",
    "MetricOptionError": "E009",
    "PluginError": "E010",
    "SyncError": "E011",
    "TokenBytesError": "E012",
    "MissingExtraError": "E013",
}


def test_codes_never_change():
    assert {name: getattr(errors, name).code for name in errors.__all__} == CODES
    assert len(set(CODES.values())) == len(CODES)


@pytest.mark.parametrize("name", CODES)
def test_a_message_ends_in_its_code(name):
    error = getattr(errors, name)("got 3; expected 2")
    assert str(error) == f"got 3; expected 2 [{CODES[name]}]"
    assert error.message == "got 3; expected 2"
    assert str(getattr(errors, name)()) == f"[{CODES[name]}]"
    assert str(getattr(errors, name)("a table:\n1 2")) == f"a table: [{CODES[name]}]\n1 2"


@pytest.mark.parametrize("name", CODES)
def test_an_error_from_another_process_has_the_same_message(name):
    error = getattr(errors, name)("got 3; expected 2")
    for _ in range(2):
        error = pickle.loads(pickle.dumps(error))
    assert type(error) is getattr(errors, name)
    assert str(error) == f"got 3; expected 2 [{CODES[name]}]"


def test_an_error_that_quotes_another_shows_its_own_code_alone():
    inner = errors.MissingExtraError("it needs matplotlib")
    outer = errors.PluginError(f"a plugin failed: {inner}. Uninstall it")
    assert str(outer) == "a plugin failed: it needs matplotlib. Uninstall it [E010]"
    assert str(type(outer)(f"task t: {outer}")) == f"task t: {outer}"
