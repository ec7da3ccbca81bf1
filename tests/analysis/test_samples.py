"""The documents that lm-eval logs, read line by line."""

from __future__ import annotations

import json

from support.logged_runs import TEXTS

from xent_metrics.analysis.json_lines import JsonLines
from xent_metrics.analysis.run_comparison import compare_runs
from xent_metrics.analysis.runs import read_run
from xent_metrics.analysis.samples import read_samples


def test_a_truncated_line_is_reported_and_the_rest_read(damaged, runs):
    base, _ = runs
    folder, samples, _ = damaged
    lines = samples.read_text(encoding="utf-8").splitlines(keepends=True)
    samples.write_text("".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    found = read_run(folder)
    assert len(found.tasks["t"].samples) == len(TEXTS) - 1
    assert found.problems == [
        f"task t: line {len(TEXTS)} of {samples.name} is skipped: it is cut off or not JSON",
        "task t: bits_per_byte, bits_per_token, expected_calibration_error: its samples hold 23 of 24 documents; its "
        "documents are not used",
    ]
    assert "1 only in A" in compare_runs(read_run(base / "a"), found)[0].reason


def test_without_samples_there_are_still_values(damaged, runs):
    base, found = runs
    folder, samples, _ = damaged
    samples.unlink()
    read = read_run(folder)
    assert "no samples beside the results" in read.problems[0]
    assert read.tasks["t"].values["bits_per_byte"] == found["a"]["bits_per_byte"]
    assert all(row.result is None for row in compare_runs(read_run(base / "a"), read))


def written(folder, *lines: str):
    path = folder / "samples_t.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return JsonLines(path)


def logged(**fields) -> str:
    return json.dumps({"doc_id": 0, "doc_hash": "d", "target_hash": "t"} | fields)


def test_equal_documents_are_numbered_in_each_filter_and_placeholders_left_out(tmp_path):
    lines = [
        logged(filter="a"), logged(doc_id=-1), logged(filter="b"), logged(filter="a", doc_id=1), logged(doc_hash="e"),
    ]  # fmt: skip
    problems = []
    found = read_samples(written(tmp_path, *lines), "t", problems)
    keys = {filter_name: [sample.key for sample in samples] for filter_name, samples in found.items()}
    assert keys == {"a": ["d t 1", "d t 2"], "b": ["d t 1"], "none": ["e t 1"]}
    assert problems == []


def test_a_document_that_is_logged_twice_counts_once(tmp_path):
    problems = []
    found = read_samples(written(tmp_path, logged(), logged(doc_id=1), logged()), "t", problems)
    assert [sample.key for sample in found["none"]] == ["d t 1", "d t 2"]
    assert problems == ["task t: line 3 of samples_t.jsonl is skipped: it repeats the document of line 1"]


def test_lines_that_are_no_documents_are_named_and_the_rest_is_read(tmp_path):
    lines = ["[1]", '{"doc_hash": "x"}', logged(), '{"doc_hash']
    problems = []
    assert len(read_samples(written(tmp_path, *lines), "t", problems)["none"]) == 1
    assert problems == [
        "task t: line 1 of samples_t.jsonl is skipped: it is not a document",
        "task t: line 2 of samples_t.jsonl is skipped: it has no 'target_hash'",
        "task t: line 4 of samples_t.jsonl is skipped: it is cut off or not JSON",
    ]
