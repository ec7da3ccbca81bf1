"""The tables hold the numbers of the runs, and differences are those of `xent compare`."""

import math

from support.result_files import write_results

from xent_metrics.analysis.run_comparison import compare_runs
from xent_metrics.analysis.runs import read_run
from xent_metrics.view import tables
from xent_metrics.view.folder import RunFolder
from xent_metrics.view.links import page_name, slug
from xent_metrics.view.tables import all_runs, all_tasks, differences, one_run, one_task

from .conftest import NAME


def snapshot(root):
    return RunFolder(root).snapshot()


def test_one_metric_of_every_run_by_task(tmp_path):
    write_results(tmp_path / "a", {"t": {"acc": 0.5, "acc_stderr": 0.01}, "u": {"acc": 0.25, "f1": 0.75}})
    write_results(tmp_path / "b", {"u": {"acc": math.nan}})
    found = all_runs(snapshot(tmp_path), None)
    assert found["metric"] == "acc"  # the most frequent
    assert [task["name"] for task in found["tasks"]] == ["t", "u"]
    assert {row["name"]: row["cells"] for row in found["rows"]} == {
        "a": [("0.5", "± 0.01"), ("0.25", "")],
        "b": [("", ""), ("—", "")],
    }
    assert [(each["name"], each["href"]) for each in found["metrics"]] == [
        ("acc", "index.html"),
        ("f1", page_name("metric", slug("f1"))),
    ]
    other = all_runs(snapshot(tmp_path), "f1")
    assert [task["name"] for task in other["tasks"]] == ["u"]
    assert [row["cells"] for row in other["rows"]] == [[("0.75", "")], [("", "")]]


def test_an_empty_folder_has_an_empty_table(tmp_path):
    assert all_runs(snapshot(tmp_path), None)["rows"] == []


def test_groups_come_first_and_are_marked(written):
    assert [(row["name"], row["is_group"], row["runs"]) for row in all_tasks(snapshot(written))["rows"]] == [
        ("all", True, 1),
        ("t", False, 3),
        (NAME, False, 1),
    ]


def test_a_run_has_all_its_values_and_leads_to_its_documents(written):
    found = snapshot(written)
    run = found.runs[1]
    [task] = one_run(found, run, as_baseline=True)["tasks"]
    values = read_run(run.path).tasks["t"].values
    assert {row["metric"]: row["value"][0] for row in task["rows"]} == {n: f"{v:.5g}" for n, v in values.items()}
    assert task["documents_href"] == page_name("documents", run.slug, slug("t"))
    assert task["against_href"] == page_name("against", run.slug, slug("t"))
    [task] = one_run(found, run, as_baseline=False)["tasks"]
    assert task["against_href"] == ""


def test_a_group_names_its_tasks_and_has_no_documents(written):
    found = snapshot(written)
    group = one_task(found, "all", found.by_slug)
    assert group["is_group"]
    assert [name for name, _ in group["subtasks"]] == ["t", NAME]
    assert [(row["documents_href"], row["against_href"]) for row in group["rows"]] == [("", "")]
    task = one_task(found, "t", [found.runs[0].slug])
    assert [bool(row["against_href"]) for row in task["rows"]] == [True, False, False]
    assert task["metrics"][0][0] == "cross_entropy"


def test_differences_are_those_of_xent_compare(written):
    folder = RunFolder(written)
    found = folder.snapshot()
    other, chosen, run = found.runs
    shown = differences(folder, found, chosen, "t", 1)
    rows = [row for row in shown["rows"] if row["name"] == run.name]
    expected = compare_runs(read_run(chosen.path), read_run(run.path))
    assert [(row["metric"], row["p"], row["difference"]) for row in rows if row["reason"] is None] == [
        (row.metric, f"{row.result.p_value:.3g}", row.result.shown(row.result.difference, 4)) for row in expected
    ]
    [row] = [row for row in rows if row["metric"] == "cross_entropy"]
    assert (row["better"], row["difference"][0]) == ("chosen run", "+")  # its temperature suits the texts better
    reasons = {row["metric"]: row["reason"] for row in shown["rows"] if row["name"] == other.name}
    assert reasons["cross_entropy"] == "the task versions differ: Yaml in A, None in B"


def test_differences_are_made_a_page_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "OTHERS_PER_PAGE", 2)
    for number in range(6):
        write_results(tmp_path / f"step{number}", {"t": {"acc": 0.5}})
    folder = RunFolder(tmp_path)
    found = folder.snapshot()
    pages = [differences(folder, found, found.runs[0], "t", page) for page in (1, 2, 3)]
    assert [row["name"] for page in pages for row in page["rows"]] == [f"step{n}" for n in range(1, 6)]
    own = (found.runs[0].slug, slug("t"))
    assert pages[0]["pages"] == [
        (1, page_name("against", *own)),
        (2, page_name("against", *own, "2")),
        (3, page_name("against", *own, "3")),
    ]
