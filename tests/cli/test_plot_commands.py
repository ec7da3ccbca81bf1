"""`xent plot` of a run that logged tokens."""

from __future__ import annotations

from support.logged_runs import write_token_run
from typer.testing import CliRunner

from xent_metrics.cli.app import app


def test_an_unknown_file_format_is_refused(tmp_path):
    result = CliRunner().invoke(app, ["plot", "curve", "-o", str(tmp_path / "a.foo")])
    assert "expected a file that ends in" in str(result.exception)
    assert "got '.foo'" in str(result.exception)


def test_plots_are_written(tmp_path):
    run = write_token_run(tmp_path / "run")
    for arguments, ending in (
        (["curve"], ".svg"),
        (["reliability", str(run)], ".png"),
        (["position", str(run)], ".svg"),
    ):
        path = tmp_path / f"{arguments[0]}{ending}"
        result = CliRunner().invoke(app, ["plot", *arguments, "-o", str(path)])
        assert result.exit_code == 0, result.output
        start = path.read_bytes()[:200]
        assert start.startswith(b"\x89PNG") or b"<svg" in path.read_bytes()
