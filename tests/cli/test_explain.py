"""`xent explain`: metrics and errors, whole at any width, with the nearest name for one that nobody has."""

from __future__ import annotations

import json

import pytest
from support.cli import fits, xent
from typer.testing import CliRunner

from xent_metrics.cli.app import app
from xent_metrics.errors import InvalidInputError, UnknownMetricError
from xent_metrics.explain.errors import error_facts
from xent_metrics.explain.metrics import metric_facts
from xent_metrics.metrics import BitsPerByte, BrierScore


def words(text):
    return " ".join(text.split())


def test_a_metric_is_explained():
    printed = words(xent("explain", "bits_per_byte"))
    facts = metric_facts(BitsPerByte)
    for text in (
        facts.formula,
        facts.unit,
        facts.use_when,
        facts.hides,
        facts.reference,
        facts.import_path,
        facts.example,
    ):
        assert words(text) in printed
    assert "token_bytes=None a tokenizer, or the table" in printed
    assert "not by any lm-eval model, `over: choices` reference" in printed


@pytest.mark.parametrize("width", [60, 100])
@pytest.mark.parametrize("name", ["brier_score", "E005"])
def test_it_fits_the_terminal(name, width):
    assert fits(xent("explain", name, width=width), width)


def test_a_metric_as_json():
    [found] = json.loads(xent("explain", "brier_score", "--json"))
    assert found["unit"] == BrierScore.value_unit
    assert found["hosts"]["serving engines with log-probabilities"] is False


@pytest.mark.parametrize("asked", ["E001", "e001", "InvalidInputError"])
def test_an_error_is_explained(asked):
    printed = words(xent("explain", asked))
    facts = error_facts(InvalidInputError)
    for text in ("E001 InvalidInputError", facts.summary, facts.cause, facts.cure, facts.example):
        assert words(text) in printed


def test_an_error_as_json():
    [found] = json.loads(xent("explain", "E001", "--json"))
    assert found["name"] == "InvalidInputError"


@pytest.mark.parametrize(
    ("asked", "kind", "near"),
    [
        ("bpb", UnknownMetricError, "'bits_per_byte'"),
        ("perplexty", UnknownMetricError, "'perplexity'"),
        ("E099", InvalidInputError, "E009"),
    ],
)
def test_the_nearest_name_is_suggested(asked, kind, near):
    error = CliRunner().invoke(app, ["explain", asked]).exception
    assert isinstance(error, kind)
    assert f"Did you mean {near}" in str(error)
