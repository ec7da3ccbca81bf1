"""The cross entropy split in two, against other references and by hand."""

from __future__ import annotations

import math

import pytest
import scipy.optimize
import scipy.stats
import torch
from support.calibrated import certain, value

from xent_metrics import (
    CrossEntropy,
    TokenMetricCollection,
    score_tokens,
)
from xent_metrics.metrics import (
    CalibrationLoss,
    CrossEntropyAtOptimalTemperature,
    RefinementLoss,
)


class TestSplit:
    def test_the_parts_add_up_to_the_cross_entropy(self, calibrated_model):
        for options in ({}, {"num_bins": 4}, {"binning": "mass"}):
            together = TokenMetricCollection([CrossEntropy(), CalibrationLoss(**options), RefinementLoss(**options)])
            found = value(together, calibrated_model[0] * 1.5, calibrated_model[1])
            assert found["calibration_loss"] > 0
            total = found["calibration_loss"] + found["refinement_loss"]
            assert total.item() == pytest.approx(found["cross_entropy"].item(), rel=1e-15)

    def test_of_two_classes_with_one_confidence_a_bin_it_is_kulls_and_flachs(self):
        """Refinement: the entropy of the frequencies; calibration: their divergence from the forecasts."""
        logits, target = certain(*[0.9] * 5, *[0.6] * 3), torch.tensor([0, 0, 0, 1, 1, 0, 0, 1])
        entropy = 5 / 8 * scipy.stats.entropy([0.6, 0.4]) + 3 / 8 * scipy.stats.entropy([2 / 3, 1 / 3])
        divergence = 5 / 8 * scipy.stats.entropy([0.6, 0.4], [0.9, 0.1])
        divergence += 3 / 8 * scipy.stats.entropy([2 / 3, 1 / 3], [0.6, 0.4])
        assert value(RefinementLoss(num_bins=10), logits, target).item() == pytest.approx(entropy, rel=1e-12)
        assert value(CalibrationLoss(num_bins=10), logits, target).item() == pytest.approx(divergence, rel=1e-12)

    def test_it_falls_to_nothing_when_the_temperature_is_mended(self, calibrated_model):
        logits, target = calibrated_model
        assert value(CalibrationLoss(), logits, target) < 0.005
        worse = value(CalibrationLoss(), 2 * logits, target)
        assert worse > 0.05
        gain = value(CrossEntropy(), 2 * logits, target) - value(CrossEntropyAtOptimalTemperature(), 2 * logits, target)
        assert worse < gain  # the top-1 as a yes or no is less than the whole distribution

    def test_a_confidence_that_rounds_to_one_has_a_finite_loss(self):
        logits, target = torch.tensor([[30.0, 0.0]]).expand(4, 2), torch.tensor([0, 0, 0, 1])
        assert score_tokens(logits, target).confidence.eq(1).all()
        # One of four is wrong, and together they left it a chance of exp(−30) of four.
        want = 0.75 * math.log(0.75) + 0.25 * (math.log(0.25) + 30 + math.log(4))
        assert value(CalibrationLoss(), logits, target).item() == pytest.approx(want, rel=1e-6)
        infinite = torch.tensor([[0.0, -math.inf]])
        assert value(CalibrationLoss(), infinite, torch.tensor([1])) == math.inf
