"""`xent doctor`: its output, JSON and exit status."""

import json

import pytest
from support.cli import xent
from typer.testing import CliRunner

from xent_metrics import hookimpl
from xent_metrics.cli.app import app


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
    assert {"kind", "place", "text", "severity"} == set(found[0])
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
