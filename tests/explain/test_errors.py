"""The facts of errors: every error has a cause, a cure and an example, which the doctests of errors.py run."""

from __future__ import annotations

import pytest

from xent_metrics.errors import InvalidInputError, MissingExtraError
from xent_metrics.explain.errors import all_errors, error_facts, find_error, is_error

ERRORS = {error.__name__: error for error in all_errors()}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_has_a_cause_a_cure_and_an_example_that_raises_it(name):
    facts = error_facts(ERRORS[name])
    for text in (facts.summary, facts.cause, facts.cure):
        assert text[0].isupper() or text[0] == "`"
        assert text.endswith((".", "`."))
    if name == "XentMetricsError":  # never raised itself
        assert "except XentMetricsError" in facts.example
        return
    raised = facts.example.partition("Traceback (most recent call last):\n")[2]
    assert raised.startswith(f"xent_metrics.errors.{name}: ")
    assert f"[{facts.code}]" in raised


def test_errors_come_in_the_order_of_their_codes():
    codes = [error.code for error in all_errors()]
    assert codes == [f"E{number:03}" for number in range(len(codes))]


@pytest.mark.parametrize("asked", ["E013", "e013", "MissingExtraError", "missingextraerror"])
def test_an_error_is_found_by_code_and_name_in_any_case(asked):
    assert find_error(asked) is MissingExtraError


@pytest.mark.parametrize(("asked", "near"), [("E113", "E013"), ("MissingExtra", "MissingExtraError")])
def test_the_nearest_is_suggested(asked, near):
    with pytest.raises(
        InvalidInputError, match=rf"unknown error '{asked}'. Did you mean .*{near}.* codes E000 to E013"
    ):
        find_error(asked)


def test_a_metric_is_no_error():
    assert [is_error(asked) for asked in ("E1", "e999", "PluginError", "entropy", "e", "brier_score")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
