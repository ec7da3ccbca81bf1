"""The names in lm-eval's files: no error of an error, and sums that are called sums and are read back."""

import copy

import lm_eval
import pytest
from support.lm_eval import DOCUMENTS, ScoredBigramLM, config, evaluate, saved

from xent_metrics.analysis.runs import read_run
from xent_metrics.hosts.lm_eval import XentTask
from xent_metrics.hosts.lm_eval.names_in_results import tidy_names

METRICS = [{"metric": "bits_per_byte"}, {"metric": "cross_entropy", "name": "bits_per_byte_sums"}]


def evaluated():
    return evaluate(
        XentTask(config("loglikelihood_rolling", DOCUMENTS["loglikelihood_rolling"], copy.deepcopy(METRICS))),
        ScoredBigramLM(),
    )


def test_lm_eval_writes_tidy_names(monkeypatch):
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "a machine")  # takes seconds
    task = XentTask(config("loglikelihood_rolling", DOCUMENTS["loglikelihood_rolling"], [{"metric": "bits_per_byte"}]))
    found = lm_eval.simple_evaluate(ScoredBigramLM(), tasks=[task], bootstrap_iters=0, log_samples=True)
    [results] = found["results"].values()
    assert {key for key in results if "bits" in key} == {"bits_per_byte,none", "bits_per_byte_stderr,none"}
    [samples] = found["samples"].values()
    for sample in samples:
        assert sample["metrics"] == ["bits_per_byte", "bits_per_byte_sums"]
        assert sample["bits_per_byte_sums"]["num_bytes"] > 0
        assert "bits_per_byte_stderr" not in sample


def test_a_run_is_read_back_with_either_names(tmp_path):
    """`lm_eval.evaluate`, called by itself, leaves the names as they are emitted."""
    untidy, tidy = evaluated(), evaluated()
    tidy_names(tidy)
    assert tidy["samples"]["t"][0].keys() != untidy["samples"]["t"][0].keys()
    saved(untidy, tmp_path / "untidy")
    saved(tidy, tmp_path / "tidy")
    runs = [read_run(tmp_path / name).tasks["t"] for name in ("untidy", "tidy")]
    for name in ("bits_per_byte", "bits_per_byte_sums"):  # the second is the name of the other's sums, too
        first, second = (run.states(name) for run in runs)
        assert first.equal(second)
    assert runs[0].values == runs[1].values


def test_groups_are_tidied():
    found = {"results": {}, "groups": {"g": {"a,none": 1.0, "a_stderr,none": 0.1, "a_stderr_stderr,none": "N/A"}}}
    tidy_names(found)
    assert found["groups"]["g"] == {"a,none": pytest.approx(1.0), "a_stderr,none": pytest.approx(0.1)}
