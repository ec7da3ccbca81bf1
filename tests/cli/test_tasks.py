"""`xent tasks`: the tasks of every folder, the broken ones with their errors."""

import json

import pytest
from support.cli import fits, xent

from xent_metrics.task_folders import task_configs_folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in place of the built-in one, with a good file and a broken one."""
    (tmp_path / "choice.yaml").write_text(
        "# Questions with\n#   choices.\ntask: choice\nmetric_list: [{metric: acc}]\n"
    )
    (tmp_path / "broken.yaml").write_text("- [red]no task[/]\n")
    monkeypatch.setattr("xent_metrics.task_folders.task_configs_folder", lambda: tmp_path)
    return tmp_path


def test_tasks_are_listed(folder):
    table = xent("tasks")
    assert "Questions with choices." in table
    assert "generate_until: acc" in table
    assert "set aside: " in table
    broken, fine, *_ = json.loads(xent("tasks", "--json"))
    assert (broken["name"], fine["name"]) == ("broken", "choice")
    assert "can't be read: while parsing" in broken["error"]
    assert "[red]no task[/]" in broken["error"]
    assert "[red]no task[/]" in table
    assert (fine["error"], fine["metrics"], fine["needs_network"]) == (None, ["acc"], True)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_names_stay_whole_in_a_narrow_terminal(width):
    table = xent("tasks", width=width)
    assert fits(table, width)
    names = [task["name"] for task in json.loads(xent("tasks", "--json"))]
    assert len(names) > 3
    assert all(name in table for name in names)


def test_the_folder_of_tasks_is_printed_alone():
    assert xent("tasks", "--path") == f"{task_configs_folder()}\n"
