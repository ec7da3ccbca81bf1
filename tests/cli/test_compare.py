"""`xent compare`: its table, JSON, legend and verdicts."""

import json
import math

import pytest
from support.cli import fits, xent
from support.logged_runs import TEXTS, write_run
from typer.testing import CliRunner

from xent_metrics.cli.app import app
from xent_metrics.errors import ComparisonError


def cells(table, metric):
    """The first line of a metric's row."""
    row = next(line for line in table.splitlines() if line.startswith(f"│ {metric} "))
    return [cell.strip() for cell in row.strip("│").split("│")]


def test_the_verdict_is_a_run_or_none(runs):
    table = xent("compare", *runs, "--num-resamples", "999")
    found = {row["metric"]: row for row in json.loads(xent("compare", *runs, "--json"))[0]["comparisons"]}
    assert found["cross_entropy"]["better"] == cells(table, "cross entropy")[-1] == "B"
    assert found["overconfidence"]["better"] is None
    assert found["overconfidence"]["p_value"] <= 0.05
    assert cells(table, "overconfidence")[-1] == "–"
    same = xent("compare", runs[0], runs[0], "--num-resamples", "999")
    assert cells(same, "cross entropy")[-1] == "not significant"


def test_the_legend_says_the_rule(runs):
    legend = " ".join(xent("compare", *runs, width=100).split())
    assert "better: the better run, if the interval excludes 0 and p ≤ 0.05" in legend


@pytest.mark.parametrize("width", [60, 80, 120])
def test_words_stay_whole_in_a_narrow_terminal(width, runs):
    table = xent("compare", *runs, "--num-resamples", "99", width=width).partition("┏")[2]
    assert fits(table, width)
    assert {"calibration", "weighted", "cross", "entropy", "overconfidence", "B"} <= set(table.split())


def test_one_run_is_too_few(runs):
    error = CliRunner().invoke(app, ["compare", str(runs[0])]).exception
    assert isinstance(error, ComparisonError)
    assert str(error) == "xent compare takes two or more runs; got 1 [E008]"


def test_it_prints_a_table_and_json(valued_runs):
    base, found = valued_runs
    arguments = ["compare", base / "a", base / "b", "--num-resamples", "99"]
    assert "bits per byte" in xent(*arguments, width=220)
    [pair] = json.loads(xent(*arguments, "--json"))
    rows = {row["metric"]: row for row in pair["comparisons"]}  # the names in the task, not the classes'
    assert rows.keys() == {"bits_per_byte", "bits_per_token", "expected_calibration_error"}
    for name, row in rows.items():
        assert (row["value_a"], row["value_b"]) == (found["a"][name], found["b"][name])
    first = rows["bits_per_byte"]
    assert first["better"] == "B"
    assert math.isfinite(first["documents_needed"])
    assert first["documents"] == len(TEXTS)


def test_shared_documents_are_compared_on_request(valued_runs, tmp_path):
    base, _ = valued_runs
    write_run(tmp_path, texts=TEXTS[1:])
    [compared] = json.loads(xent("compare", base / "b", tmp_path, "--shared-documents", "--json"))
    assert {row["documents"] for row in compared["comparisons"]} == {len(TEXTS) - 1}
    table = xent("compare", base / "b", tmp_path, "--shared-documents")
    for row in compared["comparisons"]:
        assert row["value_b"] - row["value_a"] == pytest.approx(row["difference"])
        assert cells(table, row["metric"].replace("_", " "))[1:3] == [f"{row['value_a']:.4g}", f"{row['value_b']:.4g}"]


def test_a_reason_is_said_once_for_all_metrics(valued_runs, tmp_path):
    base, _ = valued_runs
    write_run(tmp_path, texts=TEXTS[1:])
    table = xent("compare", base / "a", tmp_path)
    assert table.count("the runs saw different documents") == 1
    assert "\n[1] the runs saw different documents: 23 in both" in table
    assert {cells(table, name)[-1] for name in ("bits per byte", "bits per token")} == {"not compared [1]"}
