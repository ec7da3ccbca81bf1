"""Plots of a report with labels from documents."""

from __future__ import annotations

from xent_metrics.analysis.report_plots import task_plots
from xent_metrics.analysis.runs import read_run


def test_a_dollar_sign_in_a_domain_is_not_a_formula(token_runs):
    task = read_run(token_runs[0]).tasks["t"]
    for number, sample in enumerate(task.samples):
        sample.raw["doc"]["kind"] = "$\\foo{$" if number % 2 else "plain"
    notes = []
    labels = [plot.label for plot in task_plots({"A": task}, notes, "kind")]
    assert labels == ["Reliability", "Loss by position", "Loss by token frequency", "cross_entropy by kind"]
    assert notes == []
