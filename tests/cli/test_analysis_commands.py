"""`xent compare`, `xent intervals` and `xent report` on runs of lm-eval."""

from __future__ import annotations

import json
import math

import pytest
from support.logged_runs import TEXTS, write_pair, write_run
from typer.testing import CliRunner

from xent_metrics.cli.app import app


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the runs a and b, and the values of each."""
    base = tmp_path_factory.mktemp("runs")
    return base, write_pair(base)


def test_compare_prints_a_table_and_json(runs):
    base, found = runs
    arguments = ["compare", str(base / "a"), str(base / "b"), "--num-resamples", "99"]
    printed = CliRunner().invoke(app, arguments, env={"COLUMNS": "220"})
    assert printed.exit_code == 0, printed.output
    assert "bits per byte" in printed.output
    [pair] = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    first = next(row for row in pair["comparisons"] if row["metric"] == "bits_per_byte")
    assert first["value_a"] == pytest.approx(found["a"]["bits_per_byte"], rel=1e-14)
    assert first["better"] == "B"
    assert math.isfinite(first["documents_needed"])
    assert first["documents"] == len(TEXTS)


def test_compare_takes_the_shared_documents_on_request(runs, tmp_path):
    base, _ = runs
    write_run(tmp_path, texts=TEXTS[1:])
    result = CliRunner().invoke(app, ["compare", str(base / "b"), str(tmp_path), "--shared-documents", "--json"])
    [compared] = json.loads(result.stdout)
    assert {row["documents"] for row in compared["comparisons"]} == {len(TEXTS) - 1}


def test_intervals_prints_a_table_and_json(runs):
    base, found = runs
    for options in ([], ["--bootstrap", "--num-resamples", "199"]):
        result = CliRunner().invoke(app, ["intervals", str(base / "a"), "--json", *options])
        rows = {row["metric"]: row for row in json.loads(result.stdout)}
        for name, row in rows.items():
            assert row["value"] == pytest.approx(found["a"][name], rel=1e-12)
            assert row["low"] < row["value"] < row["high"]
        shown = CliRunner().invoke(app, ["intervals", str(base / "a"), *options], env={"COLUMNS": "100"})
        assert "bits per byte" in shown.stdout


def test_report_needs_an_existing_folder(runs, tmp_path):
    base, _ = runs
    result = CliRunner().invoke(app, ["report", str(base / "a"), "-o", str(tmp_path / "missing" / "x.html")])
    assert "doesn't exist; create it first" in str(result.exception)
