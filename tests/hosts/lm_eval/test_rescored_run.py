"""Rescored runs as lm-eval's files: every reader takes them, and no run is overwritten."""

from __future__ import annotations

import json
import shutil

import pytest
from support.rescored import ASKED, OVER_CHOICES, write_run

from xent_metrics.analysis.report import write_report
from xent_metrics.analysis.run_comparison import compare_runs
from xent_metrics.analysis.runs import read_run
from xent_metrics.errors import ComparisonError
from xent_metrics.hosts.lm_eval.rescore import rescore
from xent_metrics.hosts.lm_eval.rescored_run import folder_for, write_rescored
from xent_metrics.plugins import provenance

METRICS = [*ASKED, *OVER_CHOICES]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run, the same run with all metrics asked for, and the first one rescored."""
    base = tmp_path_factory.mktemp("rescored_run")
    few = read_run(write_run(base / "few", "multiple_choice", [{"metric": "acc"}, {"metric": "bits_per_byte"}]))
    write_run(base / "asked", "multiple_choice", METRICS)
    write_rescored(few, rescore(few, METRICS), base / "rescored")
    return base


def test_it_reads_as_the_run_that_was_asked(folders):
    found, asked = (read_run(folders / name) for name in ("rescored", "asked"))
    assert found.problems == []
    task, then = found.tasks["t"], asked.tasks["t"]
    assert (task.values, task.standard_errors) == (then.values, then.standard_errors)
    assert {name: repr(metric) for name, metric in task.metrics.items()} == {
        n: repr(m) for n, m in then.metrics.items()
    }
    for row in compare_runs(asked, found, num_resamples=99):
        assert row.result is not None, row.reason
        assert (row.result.difference, row.result.p_value) == (0, 1)
    assert "acc" not in task.samples[0].raw


def test_the_report_takes_it(folders, tmp_path):
    write_report([read_run(folders / "rescored")], tmp_path / "r.html", title="t")
    assert "overconfidence" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_it_says_where_it_comes_from(folders):
    run = read_run(folders / "rescored")
    old = read_run(folders / "few")
    assert run.results["rescored"] == {"run": str(old.path), "xent_metrics": provenance()}
    assert run.results["configs"]["t"]["metric_list"] == METRICS
    assert run.path.parent.name == old.path.parent.name
    assert run.model == old.model
    assert run.results["versions"] == old.results["versions"]


def test_no_run_is_overwritten(folders):
    few = read_run(folders / "few")
    before = {file: file.read_bytes() for file in folders.rglob("*.json*")}
    for taken in ("few", "rescored"):
        with pytest.raises(ComparisonError, match=r"results_.*\.json is a run already; choose another folder"):
            write_rescored(few, rescore(few, METRICS), folders / taken)
    assert {file: file.read_bytes() for file in folders.rglob("*.json*")} == before
    assert folder_for(few, folders / "new") == folders / "new" / few.path.parent.name


def test_where_nothing_can_be_written_is_said_by_the_folder_alone(folders):
    few = read_run(folders / "few")
    with pytest.raises(NotADirectoryError):
        folder_for(few, few.path / "new")


def test_documents_that_were_left_out_are_not_counted(folders, tmp_path):
    for file in (folders / "few").rglob("*.json*"):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / file.name).write_text("".join(lines[:-1] if file.suffix == ".jsonl" else lines), encoding="utf-8")
    run = read_run(tmp_path)
    path = write_rescored(run, rescore(run, METRICS, skip_damaged=True), tmp_path / "out")
    assert json.loads(path.read_text())["n-samples"]["t"]["effective"] == 2
    assert read_run(path).problems == []


def test_what_utf_8_lacks_is_escaped(folders, tmp_path):
    """The bytes of a path that aren't UTF-8, and a half of a surrogate pair in a document."""
    [results] = (folders / "few").rglob("results_*")
    target = tmp_path / "\udcff"
    shutil.copytree(results.parent, target)
    [samples] = target.glob("samples_*")
    text = samples.read_text(encoding="utf-8")
    samples.write_text(text.replace('"doc": {', '"doc": {"half": "\\ud800", ', 1), encoding="utf-8")
    run = read_run(target)
    again = read_run(write_rescored(run, rescore(run, METRICS), tmp_path / "new"))
    assert again.results["rescored"]["run"] == str(run.path)
    assert again.tasks["t"].samples[0].raw["doc"]["half"] == "\ud800"


def test_the_folder_is_called_as_the_runs_is(folders, monkeypatch):
    few = read_run(folders / "few")
    monkeypatch.chdir(few.path.parent)
    here = read_run(few.path.name)
    assert folder_for(here, "new").name == few.path.parent.name


def test_a_configuration_that_is_none_is_made_one(folders, tmp_path):
    few = read_run(folders / "few")
    few.results["configs"]["t"] = few.results["n-samples"] = None
    again = read_run(write_rescored(few, rescore(few, [{"metric": "perplexity"}]), tmp_path))
    assert again.results["configs"]["t"] == {"metric_list": [{"metric": "perplexity"}]}
    assert again.tasks["t"].values.keys() == {"perplexity"}
