"""Logged tokens read back."""

from __future__ import annotations

import json
import math

import pytest

from xent_metrics.analysis.runs import read_run
from xent_metrics.analysis.samples import Sample


def test_tokens_are_read_back(token_runs):
    task = read_run(token_runs[0]).tasks["t"]
    for sample in task.samples:
        assert sample.tokens.text == sample.raw["doc"]["text"]
        assert sample.tokens.alternatives == [[("e", 0.5), ("</script>", 0.25)]] * len(sample.tokens)
        assert math.fsum(sample.tokens.nll) == pytest.approx(sample.raw["cross_entropy_stderr"]["nats"])


def test_tokens_of_another_schema_are_ignored(token_runs):
    sample = read_run(token_runs[0]).tasks["t"].samples[0]
    other = json.loads(json.dumps(sample.raw).replace('\\"nll\\"', '\\"loss\\"'))
    assert Sample("x", other).tokens is None
    assert len(sample.tokens) > 0
