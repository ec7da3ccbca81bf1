"""The optimal temperature, against a search over the logits."""

from __future__ import annotations

import math

import pytest
import scipy.optimize
import scipy.stats
import torch
from torch.nn import functional as F

from xent_metrics.errors import MetricOptionError
from xent_metrics.metrics import (
    CrossEntropyAtOptimalTemperature,
    OptimalTemperature,
)
from xent_metrics.wrappers.standard_error import standard_error


def value(metric, *args, **kwargs):
    metric.update(*args, **kwargs)
    return metric.compute()


class TestTemperature:
    @pytest.mark.parametrize("scale", [0.4, 0.8, 1.0, 1.7, 3.0])
    def test_a_scaled_model_is_scaled_back(self, scale):
        logits = torch.randn(3000, 50, dtype=torch.float64) ** 3
        target = torch.distributions.Categorical(logits=logits).sample()
        found = value(OptimalTemperature(), (scale * logits).float(), target).item()
        assert found == pytest.approx(scale, rel=0.1)

        def loss(log_temperature):
            return F.cross_entropy(scale * logits * math.exp(-log_temperature), target).item()

        best = scipy.optimize.minimize_scalar(loss, bounds=(-1.4, 1.4), method="bounded", options={"xatol": 1e-9})
        assert found == pytest.approx(math.exp(best.x), rel=1e-4)
        least = value(CrossEntropyAtOptimalTemperature(), (scale * logits).float(), target).item()
        assert least == pytest.approx(best.fun, abs=1e-5)

    @pytest.mark.parametrize(("gap", "wrong"), [(8.0, 10), (12.0, 10), (15.0, 10), (20.0, 60)])
    def test_peaked_rows_that_are_all_alike(self, gap, wrong):
        """One class of 1,000 stands `gap` above the others, and is wrong `wrong` times of 200."""
        logits, target = torch.zeros(200, 1000), torch.zeros(200, dtype=torch.long)
        logits[:, 0], target[:wrong] = gap, 1

        def loss(log_temperature):
            beta, share = math.exp(-log_temperature), wrong / 200
            return math.log(math.exp(beta * gap) + 999) - (1 - share) * beta * gap

        best = scipy.optimize.minimize_scalar(loss, bounds=(-1.3, 1.3), method="bounded", options={"xatol": 1e-10})
        assert value(OptimalTemperature(), logits, target).item() == pytest.approx(math.exp(best.x), rel=1e-4)
        least = value(CrossEntropyAtOptimalTemperature(), logits, target).item()
        assert least == pytest.approx(best.fun, abs=3e-5)

    def test_an_optimum_beyond_the_range_is_its_end(self):
        logits, right = torch.tensor([[1.0, 0.0]]).expand(4, 2), torch.zeros(4).long()
        assert value(OptimalTemperature(), logits, right).item() == pytest.approx(0.25)
        want = F.cross_entropy(4 * logits, right).item()
        assert value(CrossEntropyAtOptimalTemperature(), logits, right).item() == pytest.approx(want, rel=1e-6)
        assert value(OptimalTemperature(highest=9), 5 * logits, 1 - right).item() == pytest.approx(9)

    def test_targets_of_no_probability_and_masked_classes(self):
        logits = torch.tensor([[2.0, 0.0, -math.inf]]).expand(4, 3)
        want = value(OptimalTemperature(), logits[:, :2], torch.tensor([0, 0, 0, 1]))
        torch.testing.assert_close(value(OptimalTemperature(), logits, torch.tensor([0, 0, 0, 1])), want)
        assert value(CrossEntropyAtOptimalTemperature(), logits, torch.tensor([0, 0, 0, 2])) == math.inf
        assert value(OptimalTemperature(), logits, torch.tensor([0, 0, 0, 2])).isnan()

    def test_the_error_of_the_temperature_is_that_of_resampling(self):
        logits = 2 * torch.randn(400, 6, dtype=torch.float64)
        target = torch.distributions.Categorical(logits=logits / 1.5).sample()
        metric = OptimalTemperature()
        scores = metric.score(logits, target)
        states = torch.stack([metric.exact_sums(scores[row]) for row in range(400)])
        generator = torch.Generator().manual_seed(5)
        draws = [torch.randint(400, (400,), generator=generator) for _ in range(300)]
        values = torch.stack([metric.value_of(metric.exact_sums(scores[draw])) for draw in draws])
        assert standard_error(metric, states) == pytest.approx(values.std().item(), rel=0.15)

    @pytest.mark.parametrize("range_", [(0, 2), (-1, 2), (2, 1), (1, 1), (1, math.inf), (math.nan, 2)])
    def test_the_range_is_one(self, range_):
        with pytest.raises(MetricOptionError, match="optimal_temperature: temperatures have 0 < lowest < highest; got"):
            OptimalTemperature(*range_)

    def test_both_metrics_read_one_grid(self, batch):
        best, least = OptimalTemperature(), CrossEntropyAtOptimalTemperature()
        scores = best.score(*batch)
        least.update(scores)
        before = len(scores.memo)
        best.update(scores)
        assert len(scores.memo) == before
        alone = value(OptimalTemperature(), *batch)
        best.reset()
        best.merge_state(least)
        assert torch.equal(best.compute(), alone)
