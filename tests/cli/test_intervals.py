"""`xent intervals`: its table, at any width of the terminal, and its JSON."""

import json

import pytest
from support.cli import fits, xent
from support.logged_runs import TEXTS, write_run

NAMES = ["cross entropy", "calibration weighted cross entropy", "expected calibration error", "overconfidence"]


def test_every_metric_of_every_run_is_measured(runs):
    found = json.loads(xent("intervals", *runs, "--json"))
    assert {row["metric"] for row in found} == {name.replace(" ", "_") for name in NAMES}
    assert {row["run"] for row in found} == {str(run / "bigram") for run in runs}
    assert all(row["low"] < row["value"] < row["high"] for row in found)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_words_stay_whole_in_a_narrow_terminal(width, runs):
    table = xent("intervals", runs[0], width=width)
    assert fits(table, width)
    assert {word for name in NAMES for word in name.split()} <= set(table.split())
    assert {"95", "interval"} <= set(table.split())
    assert (set(NAMES) <= {cell.strip() for cell in table.split("│")}) == (width == 120)


@pytest.mark.parametrize("options", [[], ["--bootstrap", "--num-resamples", "199"]])
def test_it_prints_a_table_and_json(options, valued_runs):
    base, found = valued_runs
    for row in json.loads(xent("intervals", base / "a", "--json", *options)):
        assert row["value"] == pytest.approx(found["a"][row["metric"]], rel=1e-12)
        assert row["low"] < row["value"] < row["high"]
    assert "bits per byte" in xent("intervals", base / "a", *options, width=100)


def test_several_runs_are_told_apart_by_their_letters(runs):
    assert "run" not in xent("intervals", runs[0]).split()
    table = xent("intervals", *runs, width=60)
    assert [line.split(": ")[0] for line in table.splitlines()[:2]] == ["A", "B"]
    assert all(str(run) in table for run in runs)
    letters = [line.split()[1] for line in table.splitlines() if line.startswith(("│ A ", "│ B "))]
    assert letters == ["A"] * len(NAMES) + ["B"] * len(NAMES)


def test_the_number_of_documents_that_a_value_rests_on_is_shown(runs):
    table = xent("intervals", runs[0])
    for row in json.loads(xent("intervals", runs[0], "--json")):
        assert 2 < row["effective_documents"] < row["documents"]
        assert f"{row['effective_documents']:.1f}" in table.split()
    assert "Student's quantile for that number" in " ".join(table.split())


def test_an_interval_that_may_not_cover_is_marked(tmp_path):
    write_run(tmp_path, texts=TEXTS[:8])
    rows = json.loads(xent("intervals", tmp_path, "--json"))
    assert {row["note"] for row in rows} == {"8 documents are few: coverage was simulated from 10 on"}
    table = xent("intervals", tmp_path)
    assert table.count(" [1] ") == len(rows)
    assert "\n[1] 8 documents are few" in table
