"""lm-eval's output files read back: complete, damaged, and not lm-eval's at all."""

from __future__ import annotations

import json

import pytest
import torch
from support.logged_runs import TEXTS

from xent_metrics.analysis.run_comparison import compare_runs
from xent_metrics.analysis.runs import read_run
from xent_metrics.errors import ComparisonError
from xent_metrics.sums.exact_sum import to_float


def test_logged_sums_give_the_values_that_lm_eval_printed(runs):
    base, found = runs
    task = read_run(base / "a").tasks["t"]
    assert len(task.samples) == len(TEXTS)
    for name, metric in task.metrics.items():
        states = task.states(name)
        assert torch.equal(metric.pack(metric.unpack(to_float(states[0]))), states[0])
        assert float(metric.value_of(states.sum(0))) == pytest.approx(found["a"][name], rel=1e-14)
        assert task.values[name] == found["a"][name]
        assert task.standard_errors[name] == found["a"][f"{name}_stderr"]


def test_incomplete_results_and_lines_that_are_not_documents_are_reported(damaged, runs):
    base, _ = runs
    folder, samples, results = damaged
    found = json.loads(results.read_text())
    results.write_text(json.dumps({**found, "versions": None, "higher_is_better": None}))
    samples.write_text('[1]\n{"doc_hash": "x"}\n' + samples.read_text(encoding="utf-8"), encoding="utf-8")
    read = read_run(folder)
    assert "line 1 of" in read.problems[0]
    assert "it is not a document" in read.problems[0]
    assert "it has no 'target_hash'" in read.problems[1]
    assert "the task versions differ: " in compare_runs(read_run(base / "a"), read)[0].reason


def test_filters_are_kept_apart(damaged):
    folder, samples, results = damaged
    found = json.loads(results.read_text())
    found["results"]["t"] |= {
        "exact_match,strict": 0.25, "exact_match_stderr,strict": 0.1, "exact_match,loose": 0.5,
    }  # fmt: skip
    results.write_text(json.dumps(found))
    documents = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    more = [
        {**d, "filter": name, "exact_match": float(i % step == 0)}
        for name, step in (("strict", 4), ("loose", 2)) for i, d in enumerate(documents)
    ]  # fmt: skip
    samples.write_text("".join(json.dumps(d) + "\n" for d in documents + more))
    task = read_run(folder).tasks["t"]
    assert (task.values["exact_match,strict"], task.standard_errors["exact_match,strict"]) == (0.25, 0.1)
    assert "exact_match,loose" not in task.standard_errors
    assert len(task.samples) == len(TEXTS)
    assert {name: float(task.states(name).sum(0)[-1, 2]) for name in ("exact_match,strict", "exact_match,loose")} == {
        "exact_match,strict": 6.0, "exact_match,loose": 12.0,
    }  # fmt: skip


def test_files_that_are_not_lm_evals_are_refused(damaged, tmp_path):
    folder, _, results = damaged
    results.write_text(json.dumps({"scores": {}, "lm_eval_version": "9.9"}))
    with pytest.raises(ComparisonError, match=r"expected lm-eval's results .* got scores, lm_eval_version.*9\.9"):
        read_run(folder)
    results.write_text('{"results": ')
    with pytest.raises(ComparisonError, match="not readable as JSON"):
        read_run(folder)
    with pytest.raises(ComparisonError, match="there is no such folder or file"):
        read_run(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ComparisonError, match=r"no results_\*\.json in it"):
        read_run(tmp_path / "empty")


def test_a_folder_of_several_runs_is_refused(runs):
    base, _ = runs
    with pytest.raises(ComparisonError, match=r"holds several runs; pass one of these folders: \S+a\S*, \S+b"):
        read_run(base)


def test_only_the_wanted_tasks_are_read(runs, tmp_path):
    base, _ = runs
    [path] = (base / "a").rglob("results_*.json")
    results = json.loads(path.read_text(encoding="utf-8"))
    for part in ("results", "configs"):
        results[part]["other"] = results[part]["t"]
    copy = tmp_path / path.name
    copy.write_text(json.dumps(results), encoding="utf-8")
    run = read_run(copy, tasks=["t"])
    assert list(run.tasks) == ["t"]
    assert not any("other" in problem for problem in run.problems)
    assert list(read_run(copy).tasks) == ["t", "other"]
    assert read_run(copy, tasks=[]).tasks == {}
