"""The tables hold the numbers of the runs, and differences are those of `xent compare`."""

import math
import sys
from pathlib import Path

import numpy as np
from support.result_files import write_results

from xent_metrics.analysis.run_matrix import compare_all
from xent_metrics.analysis.runs import read_run
from xent_metrics.view import tables
from xent_metrics.view.folder import RunFolder
from xent_metrics.view.links import page_name, slug
from xent_metrics.view.tables import all_runs, all_tasks, differences, one_run, one_task, run_cells

from .conftest import NAME

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # as for a script that is run from there

from year import write_checkpoint


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
    [_, pair] = compare_all([read_run(each.path) for each in (chosen, other, run)], baseline=True)
    cells = run_cells(run) | {"pairs": page_name("pairs", chosen.slug, run.slug, slug("t"))}
    assert [row for row in shown["rows"] if row["name"] == run.name] == [
        cells | {"metric": row.metric, "unit": row.unit, "reason": None, **numbers(row.result)} for row in pair.rows
    ]
    [row] = [row for row in shown["rows"] if (row["name"], row["metric"]) == (run.name, "cross_entropy")]
    assert row["difference"][0] == "+"
    assert (shown["tests"], shown["resamples"]) == (len(pair.rows), None)
    reasons = {row["metric"]: row["reason"] for row in shown["rows"] if row["name"] == other.name}
    assert reasons["cross_entropy"] == "the task versions differ: Yaml in A, None in B"


def numbers(result):
    return {
        "both": (f"{result.value_a:.5g}", f"{result.value_b:.5g}"),
        "difference": result.shown(result.difference, 4),
        "exact": result.difference,
        "interval": f"{result.shown(result.low)} … {result.shown(result.high)}",
        "p": f"{result.p_value:.3g}",
        "p_holm": f"{result.p_holm:.3g}",
        "p_bh": f"{result.p_bh:.3g}",
        "documents": str(result.documents),
        "needed": "∞" if math.isinf(result.documents_needed) else f"{result.documents_needed:,.0f}",
        "better": {"A": "chosen run", "B": "this run", None: "—"}[result.better],
    }


def test_p_values_are_corrected_for_all_pages_of_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "OTHERS_PER_PAGE", 2)
    rng = np.random.default_rng(0)
    for step, shift in ((1, 0.0), (2, 0.0), (3, 0.3), (4, 0.005), (5, 0.0)):
        write_checkpoint(tmp_path / f"step{step}", {"t": 50 * (2 + shift + 0.03 * rng.normal(size=12))})
    folder = RunFolder(tmp_path)
    found = folder.snapshot()
    pages = [differences(folder, found, found.runs[0], "t", page) for page in (1, 2)]
    pairs = compare_all([read_run(run.path) for run in found.runs], baseline=True)
    rows = [row for page in pages for row in page["rows"]]
    assert [(row["p_holm"], row["p_bh"], row["better"]) for row in rows] == [
        tuple(numbers(pair.rows[0].result)[key] for key in ("p_holm", "p_bh", "better")) for pair in pairs
    ]
    assert [page["tests"] for page in pages] == [4, 4]
    assert [row["better"] for row in rows] == ["—", "chosen run", "—", "—"]
    assert rows[2]["p"] == "0.0239"  # alone, it would be a verdict
    assert rows[1]["p_holm"] == f"{4 * float(rows[1]['p']):.3g}"


def test_too_few_resamples_for_so_many_comparisons_are_noted(written, monkeypatch):
    monkeypatch.setattr(tables, "RESAMPLES", 19)
    folder = RunFolder(written)
    found = folder.snapshot()
    shown = differences(folder, found, found.runs[1], "t", 1)
    assert (shown["resamples"], shown["tests"]) == (19, 3)


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
