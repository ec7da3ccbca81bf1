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
    assert "better: the better run, if the interval excludes 0 and Holm's p ≤ 0.05" in legend
    assert "corrected for all 4 comparisons made here" in legend


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
    table = xent("compare", base / "a", tmp_path, exit_code=1)
    assert table.count("the runs saw different documents") == 1
    assert "\n[1] the runs saw different documents: 23 in both" in table
    assert {cells(table, name)[-1] for name in ("bits per byte", "bits per token")} == {"not compared [1]"}


def test_three_runs_make_a_matrix_per_metric(valued_runs, tmp_path):
    base, found = valued_runs
    write_run(tmp_path, 1.9)
    arguments = ["compare", base / "a", base / "b", tmp_path, "--num-resamples", "999"]
    pairs = json.loads(xent(*arguments, "--json"))
    assert [pair["names"] for pair in pairs] == [["A", "B"], ["A", "C"], ["B", "C"]]
    assert {row["p_holm"] >= row["p_bh"] >= row["p_value"] for pair in pairs for row in pair["comparisons"]} == {True}
    table = xent(*arguments)
    assert table.count("t: bits_per_byte (bits per byte)") == 1
    first = next(line for line in table.splitlines() if line.startswith("│ A "))
    shown = [cell.strip() for cell in first.strip("│").split("│")]
    rows = [next(row for row in pair["comparisons"] if row["metric"] == "bits_per_byte") for pair in pairs]
    assert shown == ["A", f"{found['a']['bits_per_byte']:.4g}", *(f"{row['difference']:+.3g}" for row in rows[:2])]
    below = table.splitlines()[table.splitlines().index(first) + 1]
    assert f"{rows[0]['p_holm']:.2g} {rows[0]['better']}" in below
    assert "corrected for all 9 comparisons" in " ".join(table.split())


def test_a_note_is_marked_in_the_cells_of_a_matrix(valued_runs, tmp_path, monkeypatch):
    base, _ = valued_runs
    write_run(tmp_path, 1.9)
    monkeypatch.setattr("xent_metrics.analysis.comparison.reliability_note", lambda *given: "few decide it")
    table = xent("compare", base / "a", base / "b", tmp_path, "--num-resamples", "99")
    matrix = table[table.index("t: bits_per_byte") : table.index("[1] few decide it")]
    assert matrix.count(" [1]") == 3  # A with B and C, B with C


def test_a_value_that_depends_on_the_pair_is_left_out_of_the_matrix(valued_runs, tmp_path):
    base, _ = valued_runs
    write_run(tmp_path, 1.9, texts=TEXTS[1:])
    arguments = ["compare", base / "a", base / "b", tmp_path, "--num-resamples", "99", "--shared-documents"]
    [first] = [
        line for line in xent(*arguments).partition("t: bits_per_token")[0].splitlines() if line.startswith("│ A ")
    ]
    assert first.split("│")[2].strip() == ""
    assert first.count("+") + first.count("-") == 2


def test_with_a_baseline_each_run_is_compared_in_full_with_the_first(valued_runs, tmp_path):
    base, _ = valued_runs
    write_run(tmp_path, 1.9)
    arguments = ["compare", base / "a", base / "b", tmp_path, "--num-resamples", "99", "--baseline"]
    table = xent(*arguments)
    assert "B − A" in table
    assert "C − A" in table
    assert "C − B" not in table
    assert len(json.loads(xent(*arguments, "--json"))) == 2


def test_too_few_resamples_for_the_number_of_comparisons_are_named(valued_runs):
    base, _ = valued_runs
    runs = [str(base / name) for name in ("a", "b", "a", "b", "a")]
    result = CliRunner().invoke(app, ["compare", *runs, "--num-resamples", "99", "--json"])
    assert "30 comparisons: the smallest p value of 99 resamples is not significant" in " ".join(result.stderr.split())
    assert "Use --num-resamples 599 or more" in " ".join(result.stderr.split())
    result = CliRunner().invoke(app, ["compare", *runs, "--num-resamples", "599", "--json"])
    assert result.stderr == ""


def test_a_missing_verdict_says_how_many_documents_it_would_take(tmp_path):
    for name, temperature in (("a", 1.0), ("b", 2.0)):
        write_run(tmp_path / name, temperature, texts=TEXTS[:4])
    arguments = ["compare", tmp_path / "a", tmp_path / "b", "--num-resamples", "99"]
    table = xent(*arguments)
    missing = [row for row in json.loads(xent(*arguments, "--json"))[0]["comparisons"] if row["documents_missing"]]
    assert missing
    for row in missing:
        assert row["documents_missing"] == row["documents_needed"] - row["documents"]
        assert f"{row['documents_missing']:,.0f} more documents" in table


def test_runs_without_a_shared_task_are_an_error(valued_runs, tmp_path):
    base, _ = valued_runs
    write_run(tmp_path)
    [path] = tmp_path.rglob("results_*.json")
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {part: {"u": found[part]["t"]} for part in ("results", "configs", "versions")}))
    error = CliRunner().invoke(app, ["compare", str(base / "a"), str(tmp_path)]).exception
    assert isinstance(error, ComparisonError)
    assert "the runs share no task" in str(error)
    table = xent("compare", base / "a", base / "b", tmp_path, "--num-resamples", "99")
    assert "bits_per_byte" in table


@pytest.mark.parametrize("third", [False, True])
def test_the_status_says_if_nothing_could_be_compared(third, valued_runs, tmp_path):
    base, _ = valued_runs
    write_run(tmp_path, texts=TEXTS[1:])
    runs = [base / "a", tmp_path, *([tmp_path] if third else [])]
    table = xent("compare", *runs, "--num-resamples", "99", exit_code=0 if third else 1)
    assert ("comparisons made here" in table) is third  # a legend of nothing is left out
    json.loads(xent("compare", base / "a", tmp_path, "--json", exit_code=1))
