"""A folder of runs is followed while it changes, and what can't be read is named."""

import os
import shutil

import pytest
from support.result_files import write_results

from xent_metrics.analysis import run_comparison
from xent_metrics.analysis import runs as runs_module
from xent_metrics.errors import ComparisonError
from xent_metrics.view import folder
from xent_metrics.view.folder import RunFolder

VALUES = {"t": {"acc": 0.5}}


def names(runs):
    return [run.name for run in runs.snapshot(now=True).runs]


def problems(runs):
    return {problem.place: problem.text for problem in runs.snapshot(now=True).problems}


def test_runs_are_found_at_any_depth_and_sorted_by_their_numbers(tmp_path):
    for name in ("step10", "step9", "deep/er/step1"):
        write_results(tmp_path / name, VALUES)
    assert names(RunFolder(tmp_path)) == ["deep/er/step1", "step9", "step10"]


def test_new_replaced_and_deleted_runs_are_followed(tmp_path):
    runs = RunFolder(tmp_path)
    assert names(runs) == []
    versions = {runs.snapshot().version}
    path = write_results(tmp_path / "a", VALUES)
    assert names(runs) == ["a"]
    versions.add(runs.snapshot().version)
    write_results(tmp_path / "a", {"t": {"acc": 0.75}})
    os.utime(path, ns=(1, 1))
    assert runs.snapshot(now=True).runs[0].tasks["t"].values["acc"].value == 0.75
    versions.add(runs.snapshot().version)
    path.unlink()
    assert names(runs) == []
    assert len(versions) == 3


def test_the_folder_is_read_at_most_once_in_a_second(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(folder.time, "monotonic", lambda: now[0])
    runs = RunFolder(tmp_path)
    runs.snapshot()
    write_results(tmp_path / "a", VALUES)
    assert len(runs.snapshot().runs) == 0
    now[0] += 1.5
    assert len(runs.snapshot().runs) == 1


def test_files_that_have_not_changed_are_not_read_again(tmp_path, monkeypatch):
    write_results(tmp_path / "a", VALUES)
    runs = RunFolder(tmp_path)
    read = []
    monkeypatch.setattr(folder, "read_summary", lambda path, name: read.append(name))
    runs.snapshot(now=True)
    assert read == ["a"]
    monkeypatch.undo()
    assert names(runs) == ["a"]
    monkeypatch.setattr(folder, "read_summary", lambda path, name: read.append(name))
    write_results(tmp_path / "b", VALUES)
    runs.snapshot(now=True)
    assert read == ["a", "b"]


def test_a_run_that_is_still_being_written_is_named_and_read_when_it_is_whole(tmp_path):
    write_results(tmp_path / "a", VALUES)
    path = write_results(tmp_path / "b", VALUES)
    whole = path.read_text()
    path.write_text(whole[:40])
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "samples_t_2026.jsonl").write_text("{")
    runs = RunFolder(tmp_path)
    assert names(runs) == ["a"]
    assert "not readable as JSON" in problems(runs)["b"]
    assert problems(runs)["b"].endswith("If it is still being written, it is read again when it changes")
    assert problems(runs)["c"] == "samples without results: the run is still being written, or was stopped"
    path.write_text(whole)
    assert names(runs) == ["a", "b"]
    assert list(problems(runs)) == ["c"]


def test_another_schema_is_named(tmp_path):
    (tmp_path / "results_2023.json").write_text('{"results": {"t": {"acc": 0.5}}, "versions": {}}')
    write_results(tmp_path / "a", VALUES)
    runs = RunFolder(tmp_path)
    assert names(runs) == ["a"]
    assert "expected lm-eval's results with `results` and `configs`" in problems(runs)[tmp_path.name]


def test_whatever_else_a_file_does_is_named(tmp_path, monkeypatch):
    write_results(tmp_path / "a", VALUES)

    def broken(path, name):
        raise RuntimeError("surprise")

    monkeypatch.setattr(folder, "read_summary", broken)
    assert problems(RunFolder(tmp_path))["a"].endswith("not a results file of lm-eval: RuntimeError: surprise")


def test_several_results_in_a_folder_are_told_apart_by_date_and_equal_names_are_said(tmp_path):
    for date in ("2026-11-01T12-00-00", "2026-11-02T12-00-00"):
        write_results(tmp_path / "a", VALUES, date=date)
    runs = RunFolder(tmp_path)
    assert names(runs) == ["a 2026-11-01T12-00-00", "a 2026-11-02T12-00-00"]
    [note] = runs.snapshot().notes
    assert (note.place, note.text) == ("m", "2 runs have this model's name; their folders or dates tell them apart")
    assert problems(runs) == {}


def test_runs_that_would_share_a_name_get_their_whole_folders(tmp_path):
    config = {"model": "xent-torch", "model_args": ""}
    for random in ("abcd", "efgh"):
        write_results(tmp_path / "out" / random, VALUES, model_name=random, config=config)
    assert names(RunFolder(tmp_path)) == ["out/abcd", "out/efgh"]


def test_a_folder_that_disappears_is_said_once_and_its_runs_stay(tmp_path):
    root = tmp_path / "runs"
    write_results(root / "a", VALUES)
    runs = RunFolder(root)
    before = runs.snapshot(now=True)
    shutil.move(root, tmp_path / "elsewhere")
    gone = runs.snapshot(now=True)
    assert names(runs) == ["a"]
    assert gone.gone.startswith(f"{root} is gone since ")
    assert gone.version != before.version
    assert runs.snapshot(now=True) is gone
    shutil.move(tmp_path / "elsewhere", root)
    assert runs.snapshot(now=True).gone == ""


def test_links_are_followed_but_never_in_a_circle(tmp_path):
    write_results(tmp_path / "elsewhere" / "a", VALUES)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "results_2026.json").symlink_to(tmp_path / "nowhere")
    runs = RunFolder(tmp_path / "runs")
    assert names(runs) == ["linked/a"]
    assert problems(runs) == {str(tmp_path / "runs" / "results_2026.json"): "can't be read: No such file or directory"}


def test_a_task_is_read_again_when_its_samples_change(root):
    runs = RunFolder(root)
    run = runs.snapshot().runs[1]
    assert run.name == "step10/bigram"
    first = runs.task(run, "t")
    assert runs.task(run, "t") is first
    samples = next(run.path.parent.glob("samples_t_*"))
    with samples.open("a") as file:
        file.write('{"doc_hash": "half a l')
    again = runs.task(run, "t")
    assert len(again.task.samples) == len(first.task.samples) == 10
    assert any("is skipped: it is cut off or not JSON" in problem for problem in again.run.problems)


def test_samples_that_cannot_be_read_are_an_error_that_says_why(root, monkeypatch):
    runs = RunFolder(root)
    other, run, _ = runs.snapshot().runs
    with pytest.raises(ComparisonError, match="all is a group, which has no documents of its own"):
        runs.task(other, "all")

    def broken(*_, **__):
        raise RuntimeError("surprise")

    monkeypatch.setattr(runs_module, "read_run", broken)
    with pytest.raises(ComparisonError, match="the samples of t can't be read: RuntimeError: surprise"):
        runs.task(run, "t")
    monkeypatch.undo()
    shutil.rmtree(root / "step10")
    with pytest.raises(ComparisonError, match=r"results_.*json is gone"):
        runs.task(run, "t")


def test_a_comparison_is_made_once(root, monkeypatch):
    runs = RunFolder(root)
    _, a, b = runs.snapshot().runs
    rows = runs.compare(a, b, "t")
    assert rows[0].result.documents == 10
    monkeypatch.setattr(run_comparison, "compare_runs", None)
    assert runs.compare(a, b, "t") is rows
