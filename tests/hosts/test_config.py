"""Metrics and objects that a host's configuration names."""

import math

import pytest
import torch

from xent_metrics import CrossEntropy
from xent_metrics.errors import MetricOptionError, UnknownMetricError
from xent_metrics.hosts.config import build_metrics, named_object


def table():
    """Bytes per id, as a configuration may name them."""
    return torch.ones(3, dtype=torch.long)


def needs_an_argument(size):
    return torch.ones(size, dtype=torch.long)


def test_metrics_have_their_names_options_and_standard_errors():
    built = build_metrics(
        ["perplexity", {"metric": "cross_entropy", "unit": "bits", "name": "bits"}, "maximum_calibration_error"],
        standard_errors=True,
        ignore_index=0,
    )
    assert list(built)[:3] == ["perplexity", "bits", "maximum_calibration_error"]
    assert built.keys() - {"perplexity", "bits", "maximum_calibration_error"} == {
        f"{key}_stderr" for key, metric in built.items() if metric.has_standard_error and not key.endswith("_stderr")
    }
    assert (built["bits"].unit, built["bits"].ignore_index) == ("bits", 0)
    assert build_metrics(["perplexity"], standard_errors=False).keys() == {"perplexity"}


@pytest.mark.parametrize("of", [table, torch.ones(3, dtype=torch.long)])
def test_token_bytes_may_be_named(of, monkeypatch):
    monkeypatch.setattr(math, "named_by_a_test", of, raising=False)
    listed = [{"metric": "bits_per_byte", "token_bytes": "math:named_by_a_test"}]
    metric = build_metrics(listed, standard_errors=False)["bits_per_byte"]
    metric.update(torch.zeros(2, 3), torch.tensor([0, 2]))
    assert metric.compute().item() == pytest.approx(math.log2(3))


@pytest.mark.parametrize(
    ("metrics", "error", "said"),
    [
        ([], MetricOptionError, r"expected metrics as a list of names.*got \[\]"),
        ("perplexity", MetricOptionError, "expected metrics as a list of names.*got 'perplexity'"),
        (["perplexity", "perplexity"], MetricOptionError, "'perplexity' appears twice.*another `name`"),
        ([CrossEntropy()], MetricOptionError, r"Write \{'metric': 'cross_entropy', …\} instead of the object"),
        ([{"name": "x"}], MetricOptionError, r"expected a metric's name, or a dict with `metric`.*got \{'name': 'x'\}"),
        (["perplexitee"], UnknownMetricError, "Did you mean 'perplexity'"),
        ([{"metric": "bits_per_byte", "token_bytes": "no:such"}], MetricOptionError, "'no:such' names no object"),
    ],
)
def test_mistakes(metrics, error, said):
    with pytest.raises(error, match=said):
        build_metrics(metrics, standard_errors=True)


def test_a_function_is_called_only_if_it_needs_no_argument(monkeypatch):
    monkeypatch.setattr(math, "named_by_a_test", needs_an_argument, raising=False)
    assert named_object("math:named_by_a_test", call=True) is needs_an_argument
    monkeypatch.setattr(math, "named_by_a_test", table)
    assert named_object("math.named_by_a_test") is table
    assert torch.equal(named_object("math.named_by_a_test", call=True), table())
