"""`xent plot` of a run that logged tokens."""

from __future__ import annotations

import math

from support.logged_runs import write_token_run
from typer.testing import CliRunner

from xent_metrics.analysis.runs import read_run
from xent_metrics.analysis.token_view import by_position
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


def test_bars_reach_as_far_as_the_interval_on_each_side(tmp_path, monkeypatch):
    run = write_token_run(tmp_path / "run")
    drawn = []
    monkeypatch.setattr("xent_metrics.plots.draw_by_group", lambda *given, **options: drawn.append((given, options)))
    result = CliRunner().invoke(app, ["plot", "position", str(run), "-o", str(tmp_path / "p.svg")])
    assert result.exit_code == 0, result.output
    [((_, labels, values, (below, above)), options)] = drawn
    found = by_position(next(iter(read_run(run).tasks.values())))
    assert labels == found[0]
    for value, low, high, interval in zip(values, below, above, found[1], strict=True):
        assert low == (value - interval.low if math.isfinite(interval.low) else 0)
        assert high == (interval.high - value if math.isfinite(interval.high) else 0)
    assert any(abs(low - high) > 1e-3 for low, high in zip(below, above, strict=True))
    assert "95 % intervals over documents" in options["unit"]
