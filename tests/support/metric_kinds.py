"""The metrics, with options that change their sums, that the contract's tests run over; 13 classes."""

from __future__ import annotations

import torch

from xent_metrics import BitsPerByte, CrossEntropy, ExpectedCalibrationError, Perplexity, TokenAccuracy, get_metric

TABLE = torch.arange(13) % 5
KINDS = [
    CrossEntropy,
    lambda: CrossEntropy(label_smoothing=0.1, class_weight=torch.arange(13) / 7),
    Perplexity,
    TokenAccuracy,
    ExpectedCalibrationError,
    lambda: BitsPerByte(token_bytes=TABLE),
    lambda: get_metric("calibration_weighted_cross_entropy", num_bins=3),
]
IDS = ["cross_entropy", "training_loss", "perplexity", "accuracy", "ece", "bits_per_byte", "weighted"]


def used(metric, *batch):
    metric.update(*batch)
    return metric
