"""What is said of runs: that they can be compared, or why not."""

import json
import shutil

import pytest
from support.logged_runs import METRICS, TEXTS, write_pair, write_run

from xent_metrics.analysis.runs import read_run
from xent_metrics.doctor.runs import check_runs


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    write_pair(base)
    return base


@pytest.fixture
def b(pair, tmp_path):
    """A copy of run b, to be changed."""
    return shutil.copytree(pair / "b", tmp_path / "b")


def found(*folders):
    return check_runs([read_run(folder) for folder in folders])


def kinds(*folders):
    return [(finding.kind, finding.severity) for finding in found(*folders)]


def change(folder, function):
    """Change the results file of a run."""
    [path] = folder.rglob("results_*.json")
    results = json.loads(path.read_text())
    function(results)
    path.write_text(json.dumps(results))


def test_runs_that_can_be_compared_have_no_findings(pair):
    assert kinds(pair / "a", pair / "b") == []


CHANGES = {
    "task-version": lambda results: results["versions"].update(dict.fromkeys(results["versions"], 7)),
    "fewshot": lambda results: results["n-shot"].update(dict.fromkeys(results["n-shot"], 5)),
    "task-config": lambda results: [config.update(description="Read.") for config in results["configs"].values()],
    "task-hash": lambda results: results.update(task_hashes=dict.fromkeys(results["configs"], "another")),
    "prompts-differ": lambda results: results.update(chat_template_sha="another"),
    "versions-differ": lambda results: results.update(lm_eval_version="0.4.0"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_each_difference_is_found_by_its_name(kind, pair, b, tmp_path):
    a = shutil.copytree(pair / "a", tmp_path / "a")
    change(a, lambda results: results.update(task_hashes=dict.fromkeys(results["configs"], "one")))
    if kind != "task-hash":
        change(b, lambda results: results.update(task_hashes=dict.fromkeys(results["configs"], "one")))
    change(b, CHANGES[kind])
    severity = {"task-hash": "warning", "versions-differ": "note"}.get(kind, "error")
    assert kinds(a, b) == [(kind, severity)]


def test_other_documents_are_an_error(pair, tmp_path):
    write_run(tmp_path / "c", texts=TEXTS[1:])
    [finding] = found(pair / "a", tmp_path / "c")
    assert (finding.kind, finding.severity) == ("documents-differ", "error")
    assert "23 in both, 1 only in A" in finding.text


def test_other_options_and_metrics_are_found(pair, tmp_path):
    changed = [dict(METRICS[0]), {**METRICS[1], "unit": "nats"}]
    write_run(tmp_path / "c", metric_list=changed)
    [finding] = found(pair / "a", tmp_path / "c")
    assert (finding.kind, finding.severity) == ("metric-options", "error")
    assert "unit='bits'" in finding.text
    write_run(tmp_path / "d", metric_list=[dict(METRICS[0])])
    [finding] = found(pair / "a", tmp_path / "d")
    assert (finding.kind, finding.severity) == ("not-compared", "warning")
    assert finding.text == "bits_per_token, expected_calibration_error: B doesn't have this metric"


def test_damaged_and_missing_samples_are_found(b):
    [path] = b.rglob("samples_*.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-2], lines[-2][:40], lines[-1][:40]]))
    damaged, unusable = found(b)
    assert (damaged.kind, damaged.severity) == ("damaged-samples", "error")
    assert "line 23" in damaged.text
    assert "(and 1 more)" in damaged.text
    assert (unusable.kind, unusable.severity) == ("unusable-documents", "warning")
    assert "its samples hold 22 of 24 documents" in unusable.text
    path.unlink()
    assert kinds(b) == [("no-samples", "warning")]


def test_runs_without_a_task_in_common_are_an_error(pair, b):
    def rename(results):
        for key in ("results", "configs"):
            [value] = results[key].values()
            results[key] = {"other": value}

    change(b, rename)
    assert ("no-shared-task", "error") in kinds(pair / "a", b)


def test_of_versions_only_those_that_differ_are_named(pair, b, tmp_path):
    a = shutil.copytree(pair / "a", tmp_path / "a")
    made_by = {"version": "0.1.0", "plugins": [{"name": "one", "version": "1"}, {"name": "two", "version": "1"}]}
    change(a, lambda results: results.update(xent_metrics=made_by))
    change(b, lambda results: results.update(xent_metrics=made_by | {"plugins": made_by["plugins"][:1]}))
    [finding] = found(a, b)
    assert finding.kind == "versions-differ"
    assert finding.text == "plugin two: 1 in A, none in B. A difference of the values may come from this"
