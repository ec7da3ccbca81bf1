"""`xent series`: its table, JSON and options."""

import json
import sys
from pathlib import Path

import pytest
from support.cli import xent
from typer.testing import CliRunner

from xent_metrics.cli.app import app
from xent_metrics.errors import ComparisonError

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # as for a script that is run from there

from year import Year, write_year


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_year(tmp_path_factory.mktemp("year"), Year(nights=24, tasks=2, task="task_1", night=12, size=0.3))


def test_the_change_is_shown_with_its_range_size_and_p_value(folders):
    [steady, changed] = json.loads(xent("series", *folders, "--json"))
    assert steady["changes"] == []
    [change] = changed["changes"]
    assert (change["after"], change["by"], change["better"]) == (12000, 13000, False)
    table = " ".join(xent("series", *folders).split())
    assert f"worse after 12000, by 13000 ({change['earliest']} … {change['latest']}): {change['size']:+.3g}" in table
    assert f"p {change['p_corrected']:.2g}" in table
    assert f"{steady['slope']:+.3g}" in table
    assert "1 of 2 metrics changed their level." in table


def test_only_changes_are_shown_on_request(folders):
    assert "task_0" not in xent("series", *folders, "--changes-only")
    [changed] = json.loads(xent("series", *folders, "--changes-only", "--json"))
    assert changed["task"] == "task_1"
    table = xent("series", *folders[:12], "--changes-only")
    assert "0 of 2 metrics changed their level." in table
    assert "task" not in table.partition("slope:")[0]


def test_checkpoints_that_are_left_out_are_named(folders, tmp_path):
    links = [tmp_path / folder.name for folder in folders[:8]]
    for link, folder in zip(links, folders, strict=False):
        link.mkdir()
        for file in folder.iterdir():
            if not (folder == folders[2] and "samples_task_0" in file.name):
                (link / file.name).write_bytes(file.read_bytes())
    table = xent("series", *links)
    assert "7 [1]" in table
    assert "[1] left out: step 3000: " in table


def test_steps_are_given_as_a_list(folders):
    [steady, _] = json.loads(xent("series", *folders[:3], "--steps", "5,6,9", "--json"))
    assert steady["steps"] == [5, 6, 9]
    error = CliRunner().invoke(app, ["series", *map(str, folders[:3]), "--steps", "5,six"]).exception
    assert isinstance(error, ComparisonError)
    assert "expected whole numbers separated by commas; got '5,six'" in str(error)
