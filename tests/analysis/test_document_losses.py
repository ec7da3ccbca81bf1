"""The loss of a document, and of all documents of a task by columns."""

import math

import numpy as np
import pytest
from support.logged_runs import write_run

from xent_metrics.analysis import document_losses as module
from xent_metrics.analysis.document_losses import document_loss, document_losses
from xent_metrics.analysis.runs import read_run
from xent_metrics.analysis.samples import Sample


def test_the_loss_of_a_document_is_its_tokens_mean_or_else_its_logged_nats(token_runs, runs):
    [sample, *_] = read_run(token_runs[0]).tasks["t"].samples
    assert document_loss(sample) == sample.tokens.mean_nll
    [sample, *_] = read_run(runs[0] / "a").tasks["t"].samples
    assert document_loss(sample) == sample.raw["bits_per_token_stderr"]["nats"]
    assert math.isnan(document_loss(Sample("key", {})))


def test_all_losses_are_those_of_the_documents(token_runs, runs):
    for folder in (token_runs[0], runs[0] / "a"):
        task = read_run(folder).tasks["t"]
        losses, sizes = document_losses(task)
        assert losses.tolist() == pytest.approx([document_loss(sample) for sample in task.samples], rel=1e-15)
        assert sizes.tolist() == [len(sample.tokens or ()) for sample in task.samples]


def test_sums_of_nats_are_read_without_the_documents(runs, monkeypatch):
    task = read_run(runs[0] / "a").tasks["t"]
    expected = [document_loss(sample) for sample in task.samples]
    monkeypatch.setattr(module, "document_loss", None)
    assert document_losses(task)[0].tolist() == pytest.approx(expected, rel=1e-15)


def test_documents_are_read_where_no_metric_sums_nats(tmp_path):
    write_run(tmp_path, metric_list=[{"metric": "token_accuracy"}])
    losses, _ = document_losses(read_run(tmp_path).tasks["t"])
    assert np.isnan(losses).all()
