"""Functional forms have the bits of their metric after one update, and leave nothing behind."""

from __future__ import annotations

import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support.distributed import fake_ranks
from torch.distributed.tensor.debug import CommDebugMode

from xent_metrics import functional, get_metric
from xent_metrics.errors import InvalidInputError, InvalidTargetError, MetricOptionError

BYTES = torch.arange(13) % 5
FORMS = [
    ("cross_entropy", {}),
    ("cross_entropy", {"unit": "bits"}),
    ("cross_entropy", {"label_smoothing": 0.1, "class_weight": torch.arange(13) / 7}),
    ("perplexity", {}),
    ("bits_per_byte", {"token_bytes": BYTES}),
    ("byte_perplexity", {"token_bytes": BYTES}),
    ("token_accuracy", {}),
    ("top_k_accuracy", {}),
    ("top_k_accuracy", {"k": 2}),
    ("brier_score", {}),
    ("prediction_entropy", {}),
    ("expected_calibration_error", {}),
    ("expected_calibration_error", {"num_bins": 7, "binning": "mass", "norm": "l2"}),
    ("kl_divergence", {}),
    ("kl_divergence", {"temperature": 2.0}),
]
each_form = pytest.mark.parametrize(
    ("name", "options"), FORMS, ids=[f"{name} {', '.join(options)}".strip() for name, options in FORMS]
)


def call(name, batch, **options):
    """The function on a batch; a divergence is that of the logits from the same in reverse."""
    logits, target = batch
    given = (logits, logits.flip(-1), target) if name == "kl_divergence" else (logits, target)
    return getattr(functional, name)(*given, **options)


def by_metric(name, batch, weight=None, **options):
    logits, target = batch
    metric = get_metric(name, **options)
    metric.update((logits, logits.flip(-1)) if name == "kl_divergence" else logits, target, weight=weight)
    return metric.compute()


def test_every_function_is_tested():
    assert {name for name, _ in FORMS} == set(functional.__all__)


@each_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bits_are_those_of_the_metric(name, options, dtype, batch):
    batch = batch[0].to(dtype), batch[1]
    for more in ({}, {"ignore_index": 3}, {"weight": torch.rand(3, 8)}):
        if "ignore_index" in more:
            batch = batch[0], batch[1].clamp(min=0)
        value, expected = call(name, batch, **options, **more), by_metric(name, batch, **options, **more)
        assert (value.ndim, value.dtype) == (0, torch.float64)
        assert torch.equal(value, expected)
        assert torch.equal(call(name, batch, **options, **more), expected), "a second call starts from nothing"


@each_form
def test_ignored_targets_change_nothing(name, options, batch):
    logits, target = batch
    kept = target != -100
    assert torch.equal(call(name, batch, **options), call(name, (logits[kept], target[kept]), **options))


@each_form
def test_invalid_targets_raise_and_no_rows_give_nan(name, options, batch):
    logits, target = batch
    with pytest.raises(InvalidTargetError, match=f"{name}: 1 targets were neither a class"):
        call(name, (logits, target.index_put((torch.tensor(1), torch.tensor(0)), torch.tensor(13))), **options)
    with pytest.raises(InvalidInputError, match="expected one target per row"):
        call(name, (logits, target[:, 1:]), **options)
    assert call(name, (logits, torch.full_like(target, -100)), **options).isnan()


def test_options_that_cannot_be_taken_raise(batch):
    for name, options in {
        "cross_entropy": {"unit": "bytes"},
        "top_k_accuracy": {"k": 0},
        "expected_calibration_error": {"norm": "l3"},
        "kl_divergence": {"temperature": 0.0},
        "bits_per_byte": {"token_bytes": torch.rand(13)},
    }.items():
        with pytest.raises(MetricOptionError):
            call(name, batch, **options)


@pytest.mark.parametrize("name", functional.__all__)
def test_the_defaults_are_those_of_the_metric(name):
    own = inspect.signature(getattr(functional, name)).parameters
    for option, parameter in type(get_metric(name)).options().items():
        default = inspect.Parameter.empty if option == "token_bytes" else parameter.default
        assert own[option].default == default, option


def test_soft_targets_and_other_frameworks_arrays(batch):
    logits, target = batch
    soft = torch.rand(3, 8, 13).softmax(-1)
    assert torch.equal(functional.cross_entropy(logits, soft), by_metric("cross_entropy", (logits, soft)))
    given = np.asarray(logits), np.asarray(target)
    assert torch.equal(functional.perplexity(*given), by_metric("perplexity", batch))


def test_two_logits_need_no_targets(batch):
    metric = get_metric("kl_divergence")
    metric.update(batch[0], batch[0].flip(-1))
    assert torch.equal(functional.kl_divergence(batch[0], batch[0].flip(-1)), metric.compute())


def test_the_inputs_keep_their_values_and_the_value_has_no_gradient(batch):
    logits, target = batch[0].clone().requires_grad_(), batch[1].clone()
    assert not functional.cross_entropy(logits, target).requires_grad
    assert torch.equal(logits, batch[0])
    assert torch.equal(target, batch[1])


@each_form
def test_no_collective_in_a_process_group(name, options, batch, monkeypatch):
    """Each process has the value of its own batch, at whatever time it asks."""
    alone = call(name, batch, **options)
    with fake_ranks(1, 2), CommDebugMode() as mode:
        for collective in ("all_reduce", "all_gather", "barrier", "broadcast"):
            monkeypatch.setattr(dist, collective, None)
        assert torch.equal(call(name, batch, **options), alone)
    assert mode.get_total_counts() == 0


def test_the_module_is_an_attribute_of_the_package_and_loaded_when_used():
    code = """
import sys, xent_metrics
before = "xent_metrics.functional" in sys.modules
import torch
print(before, float(xent_metrics.functional.cross_entropy(torch.zeros(1, 1), torch.tensor([0]))), xent_metrics.metrics.ZLoss.name)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "0.0", "z_loss"]
