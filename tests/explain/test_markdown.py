"""Pages of metrics and errors, and the README's table."""

from __future__ import annotations

import re
from dataclasses import replace

from xent_metrics import list_metrics
from xent_metrics.explain.errors import all_errors
from xent_metrics.explain.markdown import errors_page, metric_page, metrics_page, metrics_table
from xent_metrics.explain.metrics import metric_facts
from xent_metrics.metrics import ExpectedCalibrationError

FACTS = metric_facts(ExpectedCalibrationError)


def headings(page):
    return re.findall(r"^#+ (.+)$", page, re.MULTILINE)


def test_a_page_has_every_fact():
    page = metric_page(FACTS, "picture.svg")
    assert headings(page) == [
        "expected_calibration_error", "When to use it", "What it hides", "Details", "Options", "Scores that it needs", "Example",
        "Picture",
    ]  # fmt: skip
    for text in (
        FACTS.summary,
        FACTS.use_when,
        FACTS.hides,
        FACTS.details,
        FACTS.formula,
        FACTS.reference,
        FACTS.import_path,
    ):
        assert text in page
    assert f"```math\n{FACTS.latex}\n```" in page
    assert '| `binning` | `"width"` | "width" for bins' in page
    assert "| any lm-eval model | no |" in page
    assert f"```pycon\n{FACTS.example}\n```" in page
    assert "(picture.svg)" in page


def test_what_a_metric_does_not_say_is_left_out():
    page = metric_page(replace(FACTS, latex="", formula="", use_when="", hides="", example="", hosts={}, reference=""))
    assert headings(page) == ["expected_calibration_error", "Details", "Options", "Scores that it needs"]
    assert "math" not in page
    assert "given by" not in page
    assert "**reference**" not in page


def test_metrics_that_are_named_are_linked_to_but_the_page_itself():
    page = metric_page(replace(FACTS, use_when="As perplexity, expected_calibration_error or z_loss, z_losses."))
    assert "As perplexity, expected_calibration_error or [z_loss](z_loss.md), z_losses." in page


def test_tables_hold_bars():
    rows = [re.split(r"(?<!\\)\|", line) for line in metrics_table().splitlines()]
    assert {len(row) for row in rows} == {5}
    assert any(r"\|accuracy_b − confidence_b\|" in row[2] for row in rows)


def test_the_table_and_the_list_have_every_metric():
    assert sorted(re.findall(r"^\| `(\w+)`", metrics_table(), re.MULTILINE)) == list_metrics()
    assert sorted(re.findall(r"\((\w+)\.md\)", metrics_page())) == list_metrics()


def test_the_page_of_errors_has_every_error_with_a_link_to_it():
    page = errors_page()
    assert headings(page)[1:] == [f"{error.code} {error.__name__}" for error in all_errors()]
    anchors = {heading.lower().replace(" ", "-") for heading in headings(page)}
    assert set(re.findall(r"\(#([\w-]+)\)", page)) == anchors - {"errors"}
    assert page.count("**Cause.**") == page.count("**Cure.**") == page.count("```pycon") == len(all_errors())
