"""`xent rescore`: its table, its JSON, the run that it writes, and its errors."""

from __future__ import annotations

import json

import pytest
from support.cli import fits, xent
from support.rescored import write_run
from typer.testing import CliRunner

from xent_metrics.analysis.runs import read_run
from xent_metrics.cli.app import app
from xent_metrics.errors import ComparisonError, MetricOptionError, MissingScoreError

METRICS = "cross_entropy:unit=bits;name=bits,expected_calibration_error:num_bins=5,token_accuracy"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that logs its tokens."""
    return write_run(tmp_path_factory.mktemp("run"), "loglikelihood_rolling", [{"metric": "bits_per_byte"}])


def test_json_has_values_and_errors(run):
    found = json.loads(xent("rescore", run, "--metrics", METRICS, "--json"))
    assert [row["metric"] for row in found] == ["bits", "expected_calibration_error", "token_accuracy"]
    assert [found[0][name] for name in ("task", "unit", "documents")] == ["t", "bits per token", 4]
    assert found[0]["value"] > found[0]["standard_error"] > 0
    assert found[0]["run"] == str(run / "bigram")


def test_the_table_fits(run):
    table = xent("rescore", run, "--metrics", METRICS, "--task", "t", width=100)
    assert fits(table, 100)
    assert {"bits", "± s.e.", "expected calibration error"} <= {cell.strip() for cell in table.split("│")} | {
        cell.strip() for cell in table.split("┃")
    }


def test_the_run_that_is_written_is_read_by_other_commands(run, tmp_path):
    values = json.loads(xent("rescore", run, "--metrics", METRICS, "--output", tmp_path, "--json"))
    again = json.loads(xent("intervals", tmp_path, "--json"))
    assert [row["metric"] for row in again] == [row["metric"] for row in values]
    assert read_run(tmp_path).tasks["t"].values == {row["metric"]: row["value"] for row in values}


def test_a_folder_that_is_taken_is_refused_before_anything_is_printed(run):
    result = CliRunner().invoke(app, ["rescore", str(run), "--metrics", METRICS, "--output", str(run)])
    assert isinstance(result.exception, ComparisonError)
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        ("prediction_entropy", MissingScoreError, "which no log has"),
        ("cross_entropy:bits", MetricOptionError, "--metrics cross_entropy:bits: expected name:option=value"),
        ("", MetricOptionError, "expected metrics to compute; got none"),
    ],
)
def test_mistakes_are_named(metrics, error, message, run):
    result = CliRunner().invoke(app, ["rescore", str(run), "--metrics", metrics])
    assert isinstance(result.exception, error)
    assert message in str(result.exception)


def test_documents_left_out_are_named_on_stderr(run, tmp_path):
    for file in run.rglob("*.json*"):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / file.name).write_text("".join(lines[:-1] if file.suffix == ".jsonl" else lines), encoding="utf-8")
    arguments = ["rescore", str(tmp_path), "--metrics", METRICS, "--json"]
    assert "1 of 4 documents are missing" in str(CliRunner().invoke(app, arguments).exception)
    result = CliRunner().invoke(app, [*arguments, "--skip-damaged"])
    assert "1 of 4 documents are missing" in result.stderr
    assert {row["documents"] for row in json.loads(result.stdout)} == {3}
