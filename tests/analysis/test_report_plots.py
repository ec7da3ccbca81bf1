"""Plots of a report with labels from documents."""

from __future__ import annotations

from support.lm_eval import ScoredBigramLM, config, evaluate, saved
from typer.testing import CliRunner

from xent_metrics import plots
from xent_metrics.analysis.report_plots import task_plots
from xent_metrics.analysis.runs import read_run
from xent_metrics.cli.app import app
from xent_metrics.hosts.lm_eval import XentTask


def test_a_dollar_sign_in_a_domain_is_not_a_formula(token_runs):
    task = read_run(token_runs[0]).tasks["t"]
    for number, sample in enumerate(task.samples):
        sample.raw["doc"]["kind"] = "$\\foo{$" if number % 2 else "plain"
    notes = []
    labels = [plot.label for plot in task_plots({"A": task}, notes, "kind")]
    assert labels == ["Reliability", "Loss by position", "Loss by token frequency", "cross_entropy by kind"]
    assert notes == []


def test_a_diagram_of_questions_says_questions(tmp_path, monkeypatch, token_runs):
    question = {"question": "Which?", "choices": ["no one", "this", "that"], "gold": 1}
    metric = {"metric": "expected_calibration_error", "over": "choices"}
    saved(evaluate(XentTask(config("multiple_choice", [question, question], [metric])), ScoredBigramLM()), tmp_path)
    drawn = []
    monkeypatch.setattr(plots, "draw_reliability", lambda axes, share, bins, rows: drawn.append(rows))
    for run in (tmp_path, token_runs[0]):
        task = read_run(run).tasks["t"]
        next(task_plots({"A": task}, [], None))
        CliRunner().invoke(
            app, ["plot", "reliability", str(run), "-o", str(tmp_path / "r.svg")], catch_exceptions=False
        )
    assert drawn == ["questions", "questions", "tokens", "tokens"]
