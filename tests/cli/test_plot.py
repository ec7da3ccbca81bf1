"""`xent plot`: which task of a run is drawn; the plots are tested in tests/analysis."""

import json

import pytest
from typer.testing import CliRunner

from xent_metrics.cli.app import app
from xent_metrics.errors import ComparisonError


def error_of(*arguments):
    error = CliRunner().invoke(app, ["plot", *map(str, arguments)]).exception
    assert isinstance(error, ComparisonError)
    return str(error)


@pytest.fixture
def two_tasks(runs, tmp_path):
    """A run of two tasks without samples."""
    [file] = runs[0].rglob("results_*.json")
    found = json.loads(file.read_text(encoding="utf-8"))
    for part in ("results", "configs", "versions"):
        found[part] = {"t": found[part]["t"], "u": found[part]["t"]}
    (tmp_path / file.name).write_text(json.dumps(found), encoding="utf-8")
    return tmp_path


def test_a_run_of_one_task_needs_no_name(runs, tmp_path):
    path = tmp_path / "reliability.svg"
    result = CliRunner().invoke(app, ["plot", "reliability", str(runs[0]), "-o", str(path)])
    assert (result.exit_code, result.stdout) == (0, f"{path}\n")
    assert "<svg" in path.read_text(encoding="utf-8")


def test_of_several_tasks_one_must_be_named(two_tasks):
    assert error_of("position", two_tasks) == f"{two_tasks} has several tasks: t, u; choose one with --task [E008]"
    assert error_of("position", two_tasks, "--task", "v") == f"{two_tasks} has the tasks t, u; got --task v [E008]"


def test_reliability_needs_the_calibration_error_in_the_samples(two_tasks):
    assert "have no expected_calibration_error with bins of equal width; add it to metric_list" in error_of(
        "reliability", two_tasks, "--task", "t"
    )
