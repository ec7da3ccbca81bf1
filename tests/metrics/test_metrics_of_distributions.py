"""Ranking, whole distributions and binary targets: against 50 digits, scikit-learn, scipy and values worked out by hand."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from support import reference_family

from xent_metrics import (
    get_metric,
    metrics,
)
from xent_metrics.analysis import StandardError
from xent_metrics.metrics import (
    BinaryCrossEntropy,
    TopKAccuracy,
)
from xent_metrics.testing import check_metric
from xent_metrics.wrappers.standard_error import standard_error

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


OPTIONS = {"top_k_accuracy": [{}, {"k": 1}, {"k": 2}, {"k": 13}]}


FAMILY = ["top_k_accuracy", "mean_reciprocal_rank", "prediction_entropy", "brier_score", "z_loss"]


def value(metric, *args, **kwargs):
    metric.update(*args, **kwargs)
    return metric.compute()


def test_every_built_in_has_a_reference():
    modules = [
        importlib.import_module(f"support.{path.stem}")
        for path in Path(reference_family.__file__).parent.glob("reference*.py")
    ]
    found = {name for module in modules for name in module.REFERENCES}
    classes = [getattr(metrics, name) for name in metrics.__all__]
    assert {metric.name for metric in classes if hasattr(metric, "name")} <= found  # not the base class of pairs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name in FAMILY for options in OPTIONS.get(name, [{}])]
)
def test_metrics_are_those_of_fifty_digits(name, options, dtype, batch):
    logits, target = batch[0].to(dtype), batch[1]
    rows, targets = logits.double().flatten(0, 1).tolist(), target.flatten().tolist()
    want = reference_family.REFERENCES[name](rows, targets, **options)
    got = value(get_metric(name, **options), logits, target)
    assert got.item() == pytest.approx(float(want), rel=1e-13 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("metric", [TopKAccuracy(k=3), BinaryCrossEntropy(from_logits=False)], ids=repr)
def test_options_keep_the_contract(metric):
    check_metric(metric, seed=1)


@pytest.mark.parametrize("name", FAMILY)
def test_standard_errors_are_those_of_the_documents(name):
    logits, target = torch.randn(12, 7, 8), torch.randint(8, (12, 7))
    metric = get_metric(name)
    error = StandardError(metric)
    scores = metric.score(logits, target)
    error.update(scores)
    states = torch.stack([metric.exact_sums(scores[row]) for row in range(12)])
    assert error.compute().item() == pytest.approx(standard_error(metric, states), rel=1e-9)
    assert error.compute() > 0
