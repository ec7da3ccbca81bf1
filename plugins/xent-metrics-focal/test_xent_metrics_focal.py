"""The plugin's own tests: the contract, the formula, and cross entropy at γ = 0."""

import pytest
import torch
from xent_metrics_focal import FocalCrossEntropy

from xent_metrics import CrossEntropy, get_metric
from xent_metrics.testing import check_metric


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5])
def test_it_keeps_the_contract(gamma):
    check_metric(FocalCrossEntropy(gamma=gamma))


def test_it_is_the_formula():
    logits, target = torch.randn(2, 9, 7, generator=torch.Generator().manual_seed(0)), torch.arange(18).view(2, 9) % 7
    p = logits.double().softmax(-1).gather(-1, target[..., None])
    metric = get_metric("focal_cross_entropy", gamma=1.5)
    metric.update(logits, target)
    torch.testing.assert_close(metric.compute(), ((1 - p) ** 1.5 * -p.log()).mean(), rtol=1e-6, atol=0)


def test_without_focus_it_is_the_cross_entropy():
    logits, target = torch.randn(6, 7, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    focal, plain = FocalCrossEntropy(gamma=0.0), CrossEntropy()
    focal.update(logits, target)
    plain.update(logits, target)
    assert torch.equal(focal.compute(), plain.compute())
