"""The loss by position, frequency and domain against sums by hand."""

from __future__ import annotations

import math

import pytest

from xent_metrics.analysis.runs import read_run
from xent_metrics.analysis.token_view import by_domain, by_frequency, by_position
from xent_metrics.errors import ComparisonError


def test_loss_by_position_frequency_and_domain_adds_up(token_runs):
    task = read_run(token_runs[0]).tasks["t"]
    documents = [sample.tokens for sample in task.samples]
    labels, intervals = by_position(task)
    assert labels[:3] == ["0", "1–3", "4–15"]
    firsts = [document.nll[0] for document in documents]
    assert intervals[0].value == pytest.approx(sum(firsts) / len(firsts), rel=1e-12)
    labels, intervals = by_frequency(task)
    ids = [i for document in documents for i in document.ids]
    every = zip(ids, [nll for document in documents for nll in document.nll], strict=True)
    once = [nll for i, nll in every if ids.count(i) in range(1, 4)]
    assert labels[0] == "1–3"
    assert intervals[0].value == pytest.approx(sum(once) / len(once), rel=1e-12)
    labels, intervals = by_domain(task, "bits_per_byte", "kind")
    plain = [s.raw["bits_per_byte_stderr"] for s in task.samples if s.raw["doc"]["kind"] == "plain"]
    nats, size = (sum(sums[name] for sums in plain) for name in ("nats[num_bytes > 0]", "num_bytes"))
    assert dict(zip(labels, intervals, strict=True))["plain"].value == pytest.approx(nats / size / math.log(2))
    with pytest.raises(ComparisonError, match=r"not every document has the field 'topic'.*fields: \['kind', 'text'\]"):
        by_domain(task, "bits_per_byte", "topic")
