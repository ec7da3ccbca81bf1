"""Many runs in pairs: one family of p values, with the first run or each with each."""

from __future__ import annotations

import json

import pytest
from support.logged_runs import write_run

from xent_metrics.analysis import holm
from xent_metrics.analysis.run_comparison import compare_runs
from xent_metrics.analysis.run_matrix import compare_all, run_letters
from xent_metrics.analysis.runs import read_run


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    base = tmp_path_factory.mktemp("three")
    for name, temperature in (("a", 1.0), ("b", 2.0), ("c", 1.9)):
        write_run(base / name, temperature)
    return [read_run(base / name) for name in "abc"]


def test_each_is_compared_with_each_and_all_p_values_are_one_family(three):
    pairs = compare_all(three, num_resamples=199)
    assert [(pair.first, pair.second) for pair in pairs] == [("A", "B"), ("A", "C"), ("B", "C")]
    results = [row.result for pair in pairs for row in pair.rows]
    assert len(results) == 9
    assert [result.p_holm for result in results] == holm([result.p_value for result in results])
    for pair in pairs:
        a, b = (three[run_letters(3).index(letter)] for letter in (pair.first, pair.second))
        alone = compare_runs(a, b, num_resamples=199)
        assert [row.result.p_value for row in alone] == [row.result.p_value for row in pair.rows]
        assert {row.result.better for row in pair.rows} <= {"A", "B", None}
    assert pairs[2].letter_of("B") == "C"
    assert pairs[2].letter_of(None) is None


def test_with_the_first_alone_the_family_is_smaller(three):
    pairs = compare_all(three, baseline=True, num_resamples=199)
    assert [(pair.first, pair.second) for pair in pairs] == [("A", "B"), ("A", "C")]
    assert compare_all(three[:2], num_resamples=199)[0].rows == compare_runs(*three[:2], num_resamples=199)


def test_a_run_of_another_task_is_set_aside_with_the_reason(three, tmp_path):
    write_run(tmp_path)
    [path] = tmp_path.rglob("results_*.json")
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {part: {"u": found[part]["t"]} for part in ("results", "configs", "versions")}))
    pairs = compare_all([*three[:2], read_run(tmp_path)], num_resamples=99)
    assert [pair.reason is None for pair in pairs] == [True, False, False]
    assert "share no task" in pairs[1].reason
    assert len(pairs[0].rows) == 3


def test_reasons_name_the_runs_by_their_letters(three, tmp_path):
    write_run(tmp_path, texts=["another text"] * 3)
    pairs = compare_all([*three[:2], read_run(tmp_path)], num_resamples=99)
    assert "24 only in B" in pairs[2].rows[0].reason
    assert "3 only in C" in pairs[2].rows[0].reason
