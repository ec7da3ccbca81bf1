"""`xent view` serves on loopback and exports; the pages are tested in tests/view."""

import pytest
from support.cli import xent
from support.result_files import write_results
from typer.testing import CliRunner

from xent_metrics.cli.app import app
from xent_metrics.view import server


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        write_results(tmp_path / "runs" / name, {"t": {"acc": 0.5}})
    return tmp_path / "runs"


@pytest.fixture
def served(monkeypatch):
    """What the server was started with."""
    calls = []
    monkeypatch.setattr(server, "serve", lambda site, host, port: calls.append((site, host, port)))
    return calls


def baselines(folder):
    return sorted(path.name.split("--")[1][0] for path in folder.glob("against--*"))


def test_it_is_served_to_this_machine_by_default(folder, served):
    result = CliRunner().invoke(app, ["view", str(folder)])
    [(site, host, port)] = served
    assert (host, port, site.live, site.most_documents, site.baselines) == ("127.0.0.1", 8000, True, None, None)
    assert result.stderr == ""


def test_another_address_is_warned_of(folder, served):
    result = CliRunner().invoke(app, ["view", str(folder), "--host", "0.0.0.0", "--port", "0", "--documents", "5"])
    [(site, *address)] = served
    assert address == ["0.0.0.0", 0]
    assert site.most_documents == 5
    assert "Listening on 0.0.0.0: whoever reaches this machine can read the runs." in result.stderr


def test_an_export_is_named_and_compares_with_the_first_run(folder, tmp_path):
    site = tmp_path / "site"
    assert xent("view", folder, "--export", site) == f"{site / 'index.html'}\n"
    assert baselines(site) == ["a"]
    other = tmp_path / "other"
    xent("view", folder, "--export", other, "--against", "b")
    assert baselines(other) == ["b"]


def test_a_missing_folder_and_an_unknown_run_are_errors(folder, tmp_path):
    result = CliRunner().invoke(app, ["view", str(tmp_path / "missing")])
    assert "expected one that holds output folders of lm-eval" in str(result.exception)
    result = CliRunner().invoke(app, ["view", str(folder), "--against", "c"])
    assert str(result.exception) == "no run 'c' in the folder; its first runs: a, b [E001]"


def test_a_folder_without_runs_says_so_and_what_a_run_is(tmp_path, served):
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(app, ["view", str(tmp_path / "empty")])
    assert len(served) == 1  # runs may still come
    assert "holds no run of lm-eval that can be read. A run is a folder with a results_….json" in result.stderr
