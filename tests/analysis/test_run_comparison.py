"""Two runs compared: in any order of the documents, and refused metric by metric with the reason."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from support.logged_runs import METRICS, TEXTS, write_run

from xent_metrics.analysis import compare, corrected
from xent_metrics.analysis.run_comparison import compare_runs, correct_together
from xent_metrics.analysis.runs import read_run
from xent_metrics.errors import ComparisonError
from xent_metrics.plugins import Plugins, use_plugins


def test_two_runs_are_compared_on_the_same_documents_in_any_order(runs, damaged):
    base, found = runs
    folder, samples, _ = damaged
    samples.write_text("".join(reversed(samples.read_text(encoding="utf-8").splitlines(keepends=True))))
    first, second, shuffled = read_run(base / "a"), read_run(base / "b"), read_run(folder)
    rows = {row.metric: row for row in compare_runs(first, second, num_resamples=199)}
    assert set(rows) == {"bits_per_byte", "bits_per_token", "expected_calibration_error"}
    alone = []
    for name, row in rows.items():
        assert row.result.difference == pytest.approx(found["b"][name] - found["a"][name], rel=1e-12)
        states = first.tasks["t"].states(name), second.tasks["t"].states(name)
        alone.append(compare(first.tasks["t"].metrics[name], *states, num_resamples=199))
    assert [row.result for row in rows.values()] == corrected(alone) != alone
    assert rows["bits_per_byte"].result.better == "B"  # warmer: nearer to uniform than a random table
    for row in compare_runs(first, shuffled, num_resamples=99):
        assert (row.result.difference, row.result.p_value) == (0.0, 1.0)


def test_different_documents_are_refused_with_the_reason(runs, tmp_path):
    base, _ = runs
    write_run(tmp_path, texts=TEXTS[2:])
    rows = compare_runs(read_run(base / "a"), read_run(tmp_path))
    assert all(row.result is None for row in rows)
    assert "the runs saw different documents: 22 in both, 2 only in A, 0 only in B" in rows[0].reason


def test_different_options_and_missing_metrics_are_refused_and_the_rest_compared(runs, tmp_path):
    base, _ = runs
    other = [METRICS[0], {**METRICS[2], "num_bins": 10}]
    write_run(tmp_path, metric_list=other)
    rows = {row.metric: row for row in compare_runs(read_run(base / "a"), read_run(tmp_path), num_resamples=99)}
    assert rows["bits_per_byte"].result is not None
    assert rows["bits_per_token"].reason == "B doesn't have this metric"
    assert "the metric's options differ" in rows["expected_calibration_error"].reason


def test_different_tokenizers_are_compared_per_byte_only(damaged, runs):
    base, _ = runs
    folder, samples, results = damaged
    documents = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    sums = [document["bits_per_token_stderr"] for document in documents]
    for each in sums:
        each["tokens"] -= 1
    samples.write_text("".join(json.dumps(d) + "\n" for d in documents))
    found = json.loads(results.read_text())
    tokens = sum(each["tokens"] for each in sums)
    found["results"]["t"]["bits_per_token,none"] = sum(each["nats"] for each in sums) / math.log(2) / tokens
    results.write_text(json.dumps(found))
    rows = {row.metric: row for row in compare_runs(read_run(base / "a"), read_run(folder), num_resamples=99)}
    assert "the tokenizers differ" in rows["bits_per_token"].reason
    assert rows["bits_per_byte"].result is not None


def test_different_tokenizers_are_noticed_even_if_total_counts_agree(damaged, runs):
    base, _ = runs
    folder, samples, _ = damaged
    documents = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    documents[0]["bits_per_token_stderr"]["tokens"] -= 1
    documents[1]["bits_per_token_stderr"]["tokens"] += 1
    samples.write_text("".join(json.dumps(d) + "\n" for d in documents))
    rows = {row.metric: row for row in compare_runs(read_run(base / "a"), read_run(folder), num_resamples=99)}
    assert "2 of 24 documents have a different number of tokens in B" in rows["bits_per_token"].reason
    assert rows["bits_per_token"].value_a == read_run(base / "a").tasks["t"].values["bits_per_token"]


def test_shared_documents_are_compared_on_request(damaged, runs):
    base, _ = runs
    folder, samples, _ = damaged
    lines = samples.read_bytes().splitlines(keepends=True)
    samples.write_bytes(b"".join(lines[:-1]) + lines[-1][:-2].rstrip(b"}") + "é".encode()[:1])  # within a character
    a, b = read_run(base / "a"), read_run(folder)
    assert "it is cut off or not JSON" in b.problems[0]
    assert "or compare only the documents that both have (--shared-documents)" in compare_runs(a, b)[0].reason
    rows = compare_runs(a, b, num_resamples=99, shared_documents=True)
    assert [(row.result.documents, row.result.difference) for row in rows] == [(len(TEXTS) - 1, 0.0)] * len(rows)
    for row in rows:  # of the shared documents, both
        assert row.value_a == row.value_b != a.tasks["t"].values[row.metric]


def test_metrics_that_are_not_compared_have_no_value_on_shared_documents(runs, tmp_path):
    base, _ = runs
    write_run(tmp_path, texts=TEXTS[2:], metric_list=METRICS[:1])
    rows = compare_runs(read_run(base / "a"), read_run(tmp_path), num_resamples=99, shared_documents=True)
    assert {row.metric: (row.value_a is None, row.value_b is None) for row in rows} == {
        "bits_per_byte": (False, False), "bits_per_token": (True, True), "expected_calibration_error": (True, True),
    }  # fmt: skip


def test_a_plugin_that_is_not_loaded_is_named(tmp_path):
    for name, temperature in (("a", 1.0), ("b", 2.0)):
        write_run(tmp_path / name, temperature, metric_list=[{"metric": "focal_cross_entropy"}, METRICS[0]])
    with use_plugins(Plugins()):
        a, b = read_run(tmp_path / "a"), read_run(tmp_path / "b")
        rows = {row.metric: row for row in compare_runs(a, b, num_resamples=99)}
    reason = rows["focal_cross_entropy"].reason
    assert reason.startswith("no loaded plugin registers focal_cross_entropy; ")
    assert a.problems == [f"task t: focal_cross_entropy is left out: {reason}"]
    assert list(a.tasks["t"].metrics) == ["bits_per_byte"]
    assert rows["bits_per_byte"].result is not None
    assert not read_run(tmp_path / "a").problems

    [results] = (tmp_path / "a").rglob("results_*.json")
    recorded = [{"name": name, "distribution": f"{name}-dist", "version": "0.1"} for name in ("emd", "focal")]
    results.write_text(json.dumps({**json.loads(results.read_text()), "xent_metrics": {"plugins": recorded}}))
    with use_plugins(Plugins()):
        [problem] = read_run(tmp_path / "a").problems
    assert (
        "the run used emd (emd-dist 0.1), focal (focal-dist 0.1), not loaded here: install it, or name it in" in problem
    )


def test_each_filter_is_paired_by_its_own_documents(damaged, runs):
    """The second filter's lines in another order are the same documents."""
    _, samples, results = damaged
    documents = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    right = [float(i % 3 == 0) for i in range(len(documents))]
    loose = [{**d, "filter": "loose", "exact_match": hit} for d, hit in zip(documents, right, strict=True)]
    found = json.loads(results.read_text())
    found["results"]["t"]["exact_match,loose"] = sum(right) / len(right)
    results.write_text(json.dumps(found))
    pairs = []
    for lines in (documents + loose, documents + loose[::-1]):
        samples.write_text("".join(json.dumps(d) + "\n" for d in lines))
        pairs.append(read_run(results))
    rows = {row.metric: row for row in compare_runs(*pairs, num_resamples=99)}
    assert rows["exact_match,loose"].result.p_value == 1.0
    assert rows["exact_match,loose"].result.standard_error == 0.0


def test_documents_that_do_not_give_the_value_in_the_results_are_not_used(damaged, runs):
    base, _ = runs
    folder, samples, _ = damaged
    documents = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    documents[3]["bits_per_byte_stderr"]["num_bytes"] *= 2
    samples.write_text("".join(json.dumps(d) + "\n" for d in documents))
    found = read_run(folder)
    assert [problem.partition(" give")[0] for problem in found.problems] == ["task t: bits_per_byte: its samples"]
    assert found.tasks["t"].states("bits_per_byte") is None
    rows = {row.metric: row for row in compare_runs(read_run(base / "a"), found, num_resamples=99)}
    assert "its samples give" in rows["bits_per_byte"].reason
    assert rows["bits_per_token"].result is not None


@pytest.mark.parametrize("spoilt", [None, "many", [1, None]])
def test_sums_that_are_not_numbers_are_ignored(damaged, runs, spoilt):
    base, _ = runs
    folder, samples, _ = damaged
    documents = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    documents[3]["bits_per_byte_stderr"]["num_bytes"] = spoilt
    samples.write_text("".join(json.dumps(d) + "\n" for d in documents))
    rows = {row.metric: row for row in compare_runs(read_run(base / "a"), read_run(folder), num_resamples=99)}
    assert "B has no logged sums for every document: some of its samples lack them" in rows["bits_per_byte"].reason
    assert rows["bits_per_token"].result is not None


def test_runs_without_a_shared_task_are_refused(runs, damaged):
    base, _ = runs
    folder, _, results = damaged
    found = json.loads(results.read_text(encoding="utf-8"))
    for part in ("results", "configs", "versions"):
        found[part] = {"u": found[part]["t"]}
    results.write_text(json.dumps(found))
    with pytest.raises(ComparisonError, match="share no task"):
        compare_runs(read_run(base / "a"), read_run(folder))


def test_rows_of_several_pairs_are_corrected_together(runs):
    base, _ = runs
    rows = compare_runs(read_run(base / "a"), read_run(base / "b"), num_resamples=199)
    twice = correct_together([*rows, *rows, replace(rows[0], result=None, reason="none")])
    assert twice[-1].result is None
    assert [row.result.p_value for row in twice[:3]] == [row.result.p_value for row in rows]
    assert [row.result.p_holm for row in twice[:3]] > [row.result.p_holm for row in rows]
    assert correct_together(rows) == rows
