"""Bars on a terminal for what takes long, and nothing elsewhere."""

from __future__ import annotations

import io
import sys

import pytest
import torch

from xent_metrics import CrossEntropy
from xent_metrics.analysis import progress
from xent_metrics.analysis.permutation import permutation_p_value
from xent_metrics.analysis.progress import progress_bar
from xent_metrics.analysis.runs import read_run


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def as_stderr(monkeypatch):
    """Put a stream in place of stderr, where bars are shown at once. pytest puts its own there before each test begins."""

    def place(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(progress, "_AFTER", 0.0)
        return stream

    return place


def test_reading_documents_is_shown(as_stderr, token_runs):
    terminal = as_stderr(Terminal())
    read_run(token_runs[0])
    [samples] = token_runs[0].rglob("samples_*")
    assert f"Reading {samples.name}" in terminal.getvalue()


def test_a_permutation_test_is_shown(as_stderr):
    terminal = as_stderr(Terminal())
    sums = torch.rand(20, 5, dtype=torch.float64)
    permutation_p_value(CrossEntropy(), sums, sums + 0.01, num_resamples=99)
    assert "Permutation test" in terminal.getvalue()


def test_nothing_is_shown_of_what_is_quick_or_where_nobody_looks(monkeypatch, as_stderr):
    for stream, after in ((Terminal(), 60.0), (io.StringIO(), 0.0)):
        as_stderr(stream)
        monkeypatch.setattr(progress, "_AFTER", after)
        with progress_bar("Working", 10, "steps") as bar:
            bar.update(10)
        assert "Working" not in stream.getvalue()


def test_without_tqdm_the_work_is_done_all_the_same(monkeypatch, as_stderr):
    terminal = as_stderr(Terminal())
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with progress_bar("Working", 10, "steps") as bar:
        bar.update(10)
    assert terminal.getvalue() == ""
