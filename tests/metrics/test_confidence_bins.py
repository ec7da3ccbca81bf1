"""Bins of the confidence: where they lie, and who shares them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.calibration
import torch
from support.calibrated import certain, value

from xent_metrics import (
    CalibrationWeightedCrossEntropy,
    ExpectedCalibrationError,
    TokenMetricCollection,
    score_tokens,
)
from xent_metrics.errors import MetricOptionError
from xent_metrics.metrics import (
    CalibrationLoss,
    MaximumCalibrationError,
    RMSCalibrationError,
)
from xent_metrics.metrics.confidence_bins import check_num_bins, confidence_cell, equal_mass_bin


class TestBins:
    def test_equal_mass_is_scikit_learns_quantile_strategy(self):
        """Where confidences are so far apart that each has a cell of its own."""
        levels = torch.linspace(0.52, 0.99, 40, dtype=torch.float64)
        confidence = levels.repeat_interleave(25)
        assert len(set(confidence_cell(levels).tolist())) == 40
        hit = torch.rand(1000) < confidence - 0.1
        true, mean = sklearn.calibration.calibration_curve(hit, confidence, n_bins=8, strategy="quantile")
        logits, target = certain(*confidence.tolist()), (~hit).long()
        found = value(ExpectedCalibrationError(num_bins=8, binning="mass"), logits, target)
        assert found.item() == pytest.approx(np.abs(true - mean).mean(), rel=1e-12)
        found = value(MaximumCalibrationError(num_bins=8, binning="mass"), logits, target)
        assert found.item() == pytest.approx(np.abs(true - mean).max(), rel=1e-12)

    def test_bins_of_equal_mass_have_it_as_nearly_as_cells_allow(self, calibrated_model):
        cells = confidence_cell(calibrated_model[0].softmax(-1).amax(-1))
        tokens = torch.zeros(256, dtype=torch.float64).index_add(0, cells, torch.ones(2000, dtype=torch.float64))
        size = torch.zeros(10, dtype=torch.float64).index_add(0, equal_mass_bin(tokens, 10), tokens)
        assert (size - 200).abs().max() <= tokens.max()
        assert (equal_mass_bin(tokens, 10).diff() >= 0).all()

    def test_cells_are_fine_at_the_ends_and_hold_every_confidence(self):
        confidence = torch.tensor([math.nan, 0.0, 1e-30, 4e-5, 0.4999, 0.5, 1 - 4e-5, 1 - 6e-8, 1.0])
        assert confidence_cell(confidence).tolist() == [0, 0, 0, 1, 127, 128, 254, 255, 255]

    def test_metrics_of_one_binning_share_their_sums(self, batch):
        scores = score_tokens(*batch)
        ours = [ExpectedCalibrationError, MaximumCalibrationError, RMSCalibrationError, CalibrationWeightedCrossEntropy]
        together = TokenMetricCollection([kind(binning="mass", num_bins=n) for n, kind in enumerate(ours, start=3)])
        together.update(scores)
        kinds = [key.partition(".")[2].partition(" ")[0] for key in scores.memo if "_cells[" in key]
        assert sorted(kinds) == ["confidence", "correct", "nats", "tokens"]
        assert not any("_bins[" in key for key in scores.memo)

    def test_the_weighted_loss_takes_the_weights_of_equal_mass(self, batch):
        logits, target = batch[0].flatten(0, 1), batch[1].flatten()
        metric = CalibrationWeightedCrossEntropy(strength=3.0, num_bins=4, binning="mass")
        want = value(metric, logits, target)
        assert want != value(CalibrationWeightedCrossEntropy(strength=3.0, num_bins=4), logits, target)
        torch.testing.assert_close(metric.loss(logits, target).double(), want, rtol=1e-5, atol=0)

    def test_a_binning_that_there_is_not_is_named(self):
        with pytest.raises(MetricOptionError, match='calibration_loss: binning is "width" or "mass"; got \'quantile\''):
            CalibrationLoss(binning="quantile")

    @pytest.mark.parametrize("num_bins", [1, 2, 2**20])
    def test_numbers_of_bins(self, num_bins):
        assert check_num_bins("a metric", num_bins) == num_bins

    @pytest.mark.parametrize("num_bins", [0, -1, 2**20 + 1, True, 2.0, "15", None])
    def test_what_is_no_number_of_bins_is_named(self, num_bins):
        with pytest.raises(MetricOptionError, match=f"a metric: num_bins is a whole number .*; got {num_bins!r}"):
            check_num_bins("a metric", num_bins)
