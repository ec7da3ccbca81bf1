"""Checkpoints in folders as series: a planted regression is found, and what can't be used is named."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from xent_metrics.analysis.runs import read_run
from xent_metrics.analysis.series import follow, read_series
from xent_metrics.errors import ComparisonError

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # as for a script that is run from there

from claims import Claims
from year import STEPS_PER_NIGHT, Year, judge, write_checkpoint, write_year

YEAR = Year(nights=40, tasks=3, task="task_2", night=25)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_year(tmp_path_factory.mktemp("year"), YEAR)


@pytest.fixture
def few(tmp_path):
    """Eight checkpoints of one task, for a test to damage."""
    return write_year(tmp_path, Year(nights=8, tasks=1, task="task_0", night=4, size=0.0))


def test_the_regression_of_a_teams_year_is_found(folders):
    series, claims = read_series([*folders[::2], *folders[1::2]]), Claims("a year")  # in any order
    judge(claims, series, YEAR)
    assert claims.missed == []
    assert [each.steps for each in series] == [[STEPS_PER_NIGHT * night for night in range(1, 41)]] * 3
    assert series[0].documents == 24


def test_without_the_regression_nothing_is_found(tmp_path):
    series = read_series(write_year(tmp_path, Year(nights=40, tasks=3, task="task_2", size=0.0)))
    assert [each.changes for each in series] == [[], [], []]
    assert all(each.low < each.slope < each.high < 0 for each in series)


def test_the_values_are_those_of_the_results(few):
    [series] = read_series(few)
    written = [json.loads(next(folder.glob("results_*")).read_text())["results"]["task_0"] for folder in few]
    assert series.values == pytest.approx([each["cross_entropy,none"] for each in written])
    assert series.slope == pytest.approx(np.polyfit(series.steps, series.values, 1)[0])
    assert series.to_json()["changes"] == []


def test_a_checkpoint_that_cannot_be_paired_is_left_out_with_the_reason(few):
    samples = next(few[3].glob("samples_*"))
    samples.write_text(samples.read_text().replace("task_0-5", "another"))
    next(few[5].glob("samples_*")).unlink()
    [series] = read_series(few)
    assert series.steps == [1000, 2000, 3000, 5000, 7000, 8000]
    assert "the runs saw different documents: 23 in both" in series.left_out[4000]
    assert "evaluate with --log_samples" in series.left_out[6000]
    assert np.isfinite(series.slope)


def test_the_first_checkpoint_that_can_be_used_is_the_one_to_pair_with(few):
    next(few[0].glob("samples_*")).unlink()
    [series] = read_series(few)
    assert series.steps == [1000 * night for night in range(2, 9)]
    assert "evaluate with --log_samples" in series.left_out[1000]
    [note] = series.notes
    assert note == f"left out: step 1000: {series.left_out[1000]}"


def test_trainings_are_corrected_together_and_metrics_can_be_chosen(folders):
    runs = [(step, read_run(folder)) for step, folder in enumerate(folders)]
    [alone] = [each for each in read_series(folders, steps=range(40)) if each.changes]
    both = follow({"a": runs, "b": runs[:20]}, metrics=["cross_entropy"])
    [found] = [each for each in both["a"] if each.changes]
    assert [len(both["a"]), len(both["b"])] == [3, 3]
    places = (40 - 5, 20 - 5)  # three checkpoints on either side
    assert found.changes[0].p_corrected == pytest.approx(alone.changes[0].p_corrected * sum(places) / places[0])
    assert follow({"a": runs}, metrics=["acc"]) == {"a": []}


def test_too_few_checkpoints_say_what_they_lack(few):
    [series] = read_series(few[:5])
    assert series.reason == "5 checkpoints: a change is looked for from 6 on"
    assert np.isfinite(series.slope)
    for folder in few[1:]:
        next(folder.glob("samples_*")).unlink()
    [series] = read_series(few)
    assert series.reason == "1 checkpoints can be used; a slope takes three"
    assert np.isnan(series.slope)


def test_steps_can_be_given(few):
    [series] = read_series(few, steps=range(8))
    assert series.steps == list(range(8))
    with pytest.raises(
        ComparisonError, match=r"three or more checkpoints, such as runs/\*, and a step for each; got 8 folders and 3"
    ):
        read_series(few, steps=[1, 2, 3])


def test_metadata_goes_before_the_folders_name(few):
    for step, folder in enumerate(few):
        path = next(folder.glob("results_*"))
        results = json.loads(path.read_text())
        results["configs"]["task_0"]["metadata"] = {"step": step}
        path.write_text(json.dumps(results))
    [series] = read_series(few)
    assert series.steps == list(range(8))


def test_what_is_no_series_is_an_error(few, tmp_path):
    with pytest.raises(
        ComparisonError, match=r"three or more checkpoints, such as runs/\*, and a step for each; got 2 folders"
    ):
        read_series(few[:2])
    with pytest.raises(ComparisonError, match="three or more checkpoints on either side; got 2"):
        read_series(few, window=2)
    shutil.copytree(few[0], tmp_path / "again" / few[0].name)
    with pytest.raises(ComparisonError, match="are both of step 1000"):
        read_series([*few, tmp_path / "again" / few[0].name])
    write_checkpoint(tmp_path / "last", {"task_0": np.ones(3)})
    with pytest.raises(
        ComparisonError, match="no step in the metadata, in the model's arguments or name \\(nightly\\), or in"
    ):
        read_series([*few, tmp_path / "last"])
