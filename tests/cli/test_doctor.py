"""`xent doctor`: its output, JSON and exit status."""

import json

import pytest
from support.cli import xent
from typer.testing import CliRunner

from xent_metrics import hookimpl
from xent_metrics.cli.app import app
from xent_metrics.errors import XentMetricsError


class Broken:
    @hookimpl
    def score_backend(self, logits):
        raise ZeroDivisionError("no rows today")


@pytest.fixture
def healthy(install):
    return install()


def run(*arguments):
    """The exit status and stdout."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["doctor", *map(str, arguments)])
    return result.exit_code, result.stdout


def test_a_healthy_installation_exits_with_0(healthy):
    found = json.loads(xent("doctor", "--json"))
    assert {"kind", "place", "text", "severity", "mendable"} == set(found[0])
    assert {each["kind"] for each in found} >= {"versions", "plugin", "scored-by", "threads", "gpu"}
    assert "0 errors" in xent("doctor").splitlines()[-1]


def test_errors_come_first_and_exit_with_1(install):
    install(Broken())
    status, text = run()
    assert status == 1
    assert text.startswith("error backend-raised: cpu, float32\n")
    assert text.splitlines()[-1].startswith("2 errors")
    status, text = run("--json")
    assert status == 1
    assert [each["severity"] for each in json.loads(text)].count("error") == 2


def test_yamls_are_checked_for_a_model(healthy, tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(
        "task: t\nclass: !function xent_metrics.hosts.lm_eval.XentTask\noutput_type: loglikelihood\n"
        "metric_list:\n  - metric: perplexity\n"
    )
    assert run(path)[0] == run(path, "--model", "xent-hf")[0] == 0
    status, text = run(path, "--model", "hf")
    assert status == 1
    assert "error model-cannot-score: " in text


def test_an_unknown_name_or_file_is_an_error_of_usage(healthy, tmp_path, monkeypatch):
    for target in (tmp_path / "no.yaml", tmp_path / "no_run"):
        result = CliRunner().invoke(app, ["doctor", str(target)])
        assert isinstance(result.exception, XentMetricsError)


def test_runs_are_checked_against_the_first(healthy, runs, tmp_path):
    assert run(*runs)[0] == 0
    status, text = run(*runs, runs[0])
    assert (status, text) == (0, "No findings.\n")


def test_write_shows_a_diff_and_lists_what_is_left(healthy, tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("task: t\noutput_type: multiple_choice\nmetric_list:\n  - metric: acc_nrom\n  - metric: bleu\n")
    assert run(path)[1].splitlines()[-1].startswith("2 errors")
    status, text = run(path, "--write")
    assert status == 1
    assert "-  - metric: acc_nrom\n+  - metric: acc_norm\n" in text
    assert text.splitlines()[-1] == "1 error, 0 warnings, 0 notes"
    status, text = run(path, "--write", "--json")
    assert [each["kind"] for each in json.loads(text)] == ["dropped-metric"]
    assert isinstance(CliRunner().invoke(app, ["doctor", "--write"]).exception, XentMetricsError)
