"""Each document's sums, from our log or from lm-eval's own."""

from __future__ import annotations

import pytest

from xent_metrics import CrossEntropy, ExpectedCalibrationError
from xent_metrics.analysis.logged_sums import SumsColumn, sums_of
from xent_metrics.analysis.run_metrics import LoggedMean


def row(raw, name, metric):
    """The sums without the counts of rows, which no log has."""
    found = SumsColumn(metric, name).row(raw)
    return None if found is None else found[3:]


def test_a_documents_sums_are_ours_or_follow_from_lm_evals():
    raw = {
        "xent_stderr": {"nats": 6.0, "tokens": 3}, "xent": 2.0, "acc": 1, "word_perplexity": [-6.0, 3],
        "odd_stderr": {"nats": "6", "tokens": 3}, "long_stderr": {"nats": [6.0], "tokens": 3}, "short_stderr": {"nats": 6.0},
    }  # fmt: skip
    metric = CrossEntropy()
    assert row(raw, "xent", metric) == [6.0, 3]
    assert row(raw, "acc", LoggedMean("acc")) == [1.0, 1.0]  # documents, values
    assert row(raw, "word_perplexity", metric) == [6.0, 3]
    for name in ("odd", "long", "short", "acc", "missing"):
        assert row(raw, name, metric) is None
    assert row(raw, "xent_stderr", LoggedMean("xent")) is None


@pytest.mark.parametrize("size", [0, 1, 2, 4])
def test_a_binned_sum_has_a_number_for_each_bin(size):
    metric = ExpectedCalibrationError(num_bins=3)
    logged = {name: [1.0] * 3 for name in metric.layout.rows}
    assert row({"ece_sums": logged}, "ece", metric) == [1.0] * 9
    for name in logged:
        assert row({"ece_sums": logged | {name: [1.0] * size}}, "ece", metric) is None
    assert row({"ece_sums": logged | {name: 1.0}}, "ece", metric) is None


def test_there_are_no_sums_unless_every_document_has_them():
    documents = [{"xent_sums": {"nats": nats, "tokens": 2}} for nats in (1.0, 3.0)]
    found = sums_of(documents, "xent", CrossEntropy())
    assert found is not None
    assert found.value(CrossEntropy()) == 1.0
    assert sums_of([*documents, {}], "xent", CrossEntropy()) is None
    assert sums_of([], "xent", CrossEntropy()) is None
