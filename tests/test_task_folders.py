"""The tasks of a folder, read from their YAMLs; a file that can't be read doesn't hide the others."""

import re

import pytest
from support.task_yamls import write_tasks

from xent_metrics.hookspecs import hookimpl
from xent_metrics.task_folders import list_tasks, task_configs_folder, task_folders


def test_the_tasks_of_a_folder_are_described(tmp_path):
    write_tasks(tmp_path)
    (tmp_path / "_part.yaml").write_text("dataset_path: someone/else\n")
    (tmp_path / "hub.yaml").write_text("include: _part.yaml\ntask: hub\nmetric_list: [{metric: acc}]\n")
    found = {task.name: task for task in list_tasks(tmp_path)}
    assert sorted(found) == ["choice", "hub", "rolling_other", "rolling_ours", "rolling_stock", "rolling_tokens"]
    assert (found["hub"].needs_network, found["choice"].needs_network) == (True, False)
    assert found["choice"].description == "Questions with choices."
    assert found["choice"].metrics == ["acc", "cross_entropy", "bits_per_byte"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [unclosed\n", "can't be read: while parsing"),
        ("task: {a: b}: c\n", "can't be read"),
        ("- one\n- two\n", "is not an lm-eval task: expected keys with values; got list"),
        ("include: missing.yaml\ntask: t\n", "missing.yaml can't be read: .*No such file"),
        ("task: t\nmetric_list: [acc]\n", r"expected metric_list to be a list of entries.*; got \['acc'\]"),
        (b"task: \xff\n", "can't be read: 'utf-8' codec"),
        ("task: t\ninclude: {a: 1}\n", "expected include to be a file or a list of files; got {'a': 1}"),
        ("task: t\ninclude: broken.yaml\n", "broken.yaml includes itself, through broken.yaml"),
        ("task: " + "[" * 5000, "can't be read"),
    ],
)
def test_a_yaml_that_cannot_be_read_is_listed_with_its_error(text, message, tmp_path):
    (tmp_path / "fine.yaml").write_text("# All right.\ntask: fine\n")
    (tmp_path / "broken.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    broken, fine = list_tasks(tmp_path)
    assert (broken.name, fine.name, fine.error) == ("broken", "fine", None)
    assert re.search(message, broken.error)
    assert str(tmp_path) in broken.error


def test_our_folder_comes_before_those_of_plugins(install, tmp_path):
    class Module:
        @hookimpl
        def register_task_configs(self, register):
            register(tmp_path)

    install(Module())
    assert task_folders() == [task_configs_folder(), tmp_path]
    assert task_configs_folder().is_dir()


def test_a_few_lines_that_stand_for_a_billion_values_are_shown_in_short(tmp_path):
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(11))
    (tmp_path / "t.yaml").write_text(
        f"task: t\n{bomb}output_type: *a11\ndataset_path: *a11\nmetric_list: [metric: *a11]\n"
    )
    [task] = list_tasks(tmp_path)
    assert len(task.output_type) + len(task.metrics[0]) < 10_000
    (tmp_path / "t.yaml").write_text(f"task: t\n{bomb}metric_list: *a11\n")
    assert len(list_tasks(tmp_path)[0].error) < 10_000
