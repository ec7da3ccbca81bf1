"""Token accuracy against scikit-learn and torchmetrics, with ties and ignored targets."""

from __future__ import annotations

import sklearn.metrics
import torch
import torchmetrics

from xent_metrics import TokenAccuracy


def value(*args):
    metric = TokenAccuracy()
    metric.update(*args)
    return metric.compute().item()


def test_it_is_scikit_learns():
    logits, target = torch.randn(60, 7, dtype=torch.float64), torch.randint(7, (60,))
    assert value(logits, target) == sklearn.metrics.accuracy_score(target.numpy(), logits.argmax(-1).numpy())


def test_ignored_targets_do_not_count(batch):
    theirs = torchmetrics.classification.MulticlassAccuracy(num_classes=13, average="micro", ignore_index=-100)
    theirs.update(batch[0].flatten(0, 1), batch[1].flatten())
    hits = round(theirs.compute().item() * 21)  # theirs is a float32
    assert 0 < hits < 21
    assert value(*batch) == hits / 21


def test_of_equal_maxima_the_first_is_the_prediction():
    logits = torch.tensor([[1.0, 3.0, 3.0], [3.0, 1.0, 3.0], [2.0, 2.0, 2.0]])
    assert value(logits, torch.tensor([1, 0, 0])) == 1
    assert value(logits, torch.tensor([2, 2, 2])) == 0
