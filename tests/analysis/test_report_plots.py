"""Plots of a report with labels from documents."""

from __future__ import annotations

from support.lm_eval import ScoredBigramLM, config, evaluate, saved
from typer.testing import CliRunner

from xent_metrics import plots
from xent_metrics.analysis.report_plots import task_plots
from xent_metrics.analysis.runs import read_run
from xent_metrics.cli.app import app
from xent_metrics.hosts.lm_eval import XentTask


def test_a_dollar_sign_in_a_domain_is_not_a_formula(tmp_path):
    documents = [{"text": "one two", "kind": kind} for kind in ("$\\foo{$", "plain")]
    task = XentTask(config("loglikelihood_rolling", documents, [{"metric": "cross_entropy"}]))
    saved(evaluate(task, ScoredBigramLM()), tmp_path)
    notes = []
    [plot] = task_plots({"A": read_run(tmp_path).tasks["t"]}, notes, "kind")
    assert (plot.label, notes) == ("cross_entropy by kind", [])
    assert "$\\foo{$" in plot.svg


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
