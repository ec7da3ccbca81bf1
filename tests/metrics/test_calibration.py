"""The calibration metrics: against 50 digits, scikit-learn, torch, scipy, values by hand, and models that are calibrated."""

from __future__ import annotations

import math

import pytest
import scipy.optimize
import scipy.stats
import torch
from support import reference_family

from xent_metrics import (
    ExpectedCalibrationError,
    get_metric,
    score_tokens,
)
from xent_metrics.analysis import StandardError
from xent_metrics.errors import MetricOptionError
from xent_metrics.metrics import (
    CalibrationLoss,
    ClasswiseCalibrationError,
    CrossEntropyAtOptimalTemperature,
    FullCalibrationError,
    MaximumCalibrationError,
    OptimalTemperature,
    Overconfidence,
    RMSCalibrationError,
)
from xent_metrics.testing import check_metric
from xent_metrics.wrappers.standard_error import standard_error

KINDS = [
    ("mean_confidence", {}),
    ("overconfidence", {}),
    ("expected_calibration_error", {"binning": "mass"}),
    ("expected_calibration_error", {"binning": "mass", "num_bins": 4}),
    ("calibration_loss", {}),
    ("calibration_loss", {"num_bins": 3, "binning": "mass"}),
    ("refinement_loss", {"num_bins": 5}),
    ("full_calibration_error", {}),
    ("full_calibration_error", {"num_bins": 4}),
    ("full_calibration_error", {"num_bins": 40}),
    ("classwise_calibration_error", {"classes": 13}),
    ("classwise_calibration_error", {"classes": [12, 0, 5], "num_bins": 6}),
    ("optimal_temperature", {}),
    ("optimal_temperature", {"lowest": 0.5, "highest": 7.0}),
    ("cross_entropy_at_optimal_temperature", {}),
]


IDS = [f"{name}{options or ''}" for name, options in KINDS]


def value(metric, *args, **kwargs):
    metric.update(*args, **kwargs)
    return metric.compute()


def certain(*confidences):
    """Logits of two classes: a row for each confidence in the class 0."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([p, 1 - p], dim=-1).log()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "options"), KINDS, ids=IDS)
def test_metrics_are_those_of_the_references(name, options, dtype, batch):
    logits, target = batch[0].to(dtype), batch[1]
    target = torch.where((torch.arange(8) % 2 == 0) & (target != -100), logits.argmax(-1), target)
    rows, targets = logits.double().flatten(0, 1).tolist(), target.flatten().tolist()
    want = reference_family.REFERENCES[name](rows, targets, **options)
    tolerance = 1e-4 if name == "optimal_temperature" else 2e-6
    tolerance = 1e-12 if dtype == torch.float64 and "optimal" not in name else tolerance
    assert value(get_metric(name, **options), logits, target).item() == pytest.approx(
        float(want), rel=tolerance, abs=1e-9
    )


@pytest.mark.parametrize(("name", "options"), [(name, options) for name, options in KINDS if options])
def test_options_keep_the_contract(name, options):
    check_metric(get_metric(name, **options), vocab_size=13, seed=1)


@pytest.mark.parametrize(("name", "options"), KINDS, ids=IDS)
def test_standard_errors_are_finite_and_those_of_the_documents(name, options):
    """Some bins are empty, and in some all predictions are right: gradients must not be nan."""
    logits = 2 * torch.randn(9, 7, 13)
    target = torch.distributions.Categorical(logits=logits / 1.3).sample()
    metric = get_metric(name, **options)
    scores = metric.score(logits, target)
    states = torch.stack([metric.exact_sums(scores[row]) for row in range(9)])
    found = standard_error(metric, states)
    assert 0 < found < math.inf
    if len(states[0]) < 100:  # the products of all cells' sums take long
        error = StandardError(metric)
        error.update(scores)
        assert error.compute().item() == pytest.approx(found, rel=1e-6)


class TestByHand:
    def test_overconfidence(self):
        logits = certain(0.9, 0.9, 0.6, 0.6)
        assert value(Overconfidence(), logits, torch.tensor([0, 1, 1, 1])).item() == pytest.approx(0.75 - 0.25)
        assert value(Overconfidence(), logits, torch.tensor([0, 0, 0, 0])).item() == pytest.approx(0.75 - 1)

    def test_errors_of_the_three_norms(self):
        logits, target = certain(0.9, 0.9, 0.6, 0.6), torch.tensor([0, 1, 0, 0])  # gaps 0.4 and 0.4 of other sign
        for kind in (ExpectedCalibrationError, MaximumCalibrationError, RMSCalibrationError):
            assert value(kind(num_bins=10), logits, target).item() == pytest.approx(0.4)
        assert value(Overconfidence(), logits, target).item() == pytest.approx(0)

    def test_perfect_calibration_is_zero_with_no_error(self):
        nearly = score_tokens(certain(*[0.75] * 8).reshape(2, 4, 2), torch.tensor([[0, 0, 0, 1]] * 2))
        exactly = score_tokens(torch.tensor([1e4, 0.0]).expand(2, 4, 2), torch.zeros(2, 4).long())
        for metric in (RMSCalibrationError(), CalibrationLoss(), MaximumCalibrationError()):
            for scores in (nearly, exactly):
                metric.reset()
                states = torch.stack([metric.exact_sums(scores[row]) for row in range(2)])
                assert value(metric, scores).item() == pytest.approx(0, abs=1e-9)
                assert standard_error(metric, states) < 1e-6
            assert metric.compute() == 0

    def test_full_looks_beyond_the_top(self):
        """p = (0.6, 0.3, 0.1) ten times, the top-1 right in six, the second never: right for the top-1, not for the rest."""
        logits = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log().expand(10, 3)
        target = torch.tensor([0] * 6 + [2] * 4)
        assert value(ExpectedCalibrationError(num_bins=10), logits, target).item() == pytest.approx(0, abs=1e-12)
        assert value(FullCalibrationError(num_bins=10), logits, target).item() == pytest.approx(0.3 + 0.3)
        each = value(ClasswiseCalibrationError(classes=3, num_bins=10), logits, target)
        assert each.item() == pytest.approx((0 + 0.3 + 0.3) / 3)
        assert value(ClasswiseCalibrationError(classes=[1]), logits, target).item() == pytest.approx(0.3)

    def test_temperature_of_two_classes(self):
        """All margins m, a share a right: σ(m/T) = a."""
        logits, target = torch.tensor([[3.0, 0.0]], dtype=torch.float64).expand(10, 2), torch.tensor([0] * 8 + [1] * 2)
        assert value(OptimalTemperature(), logits, target).item() == pytest.approx(3 / math.log(4), rel=1e-5)
        entropy = scipy.stats.entropy([0.8, 0.2])
        assert value(CrossEntropyAtOptimalTemperature(), logits, target).item() == pytest.approx(entropy, rel=1e-6)


@pytest.mark.parametrize(("name", "options"), [*KINDS, ("full_calibration_error", {"num_bins": 1})])
def test_a_row_of_nan_is_counted(name, options, batch):
    logits, target = batch[0].clone(), batch[1]
    logits[1, 3] = math.nan
    metric = get_metric(name, **options)
    metric.update(logits, target)
    assert metric.counts()["nan"] > 0
    with pytest.warns(UserWarning, match="of 21 rows gave nan"):
        assert metric.compute().isnan()


def test_the_maximum_and_rms_errors_are_options_too():
    generator = torch.Generator().manual_seed(5)
    logits, target = 2 * torch.randn(200, 6, generator=generator), torch.randint(6, (200,), generator=generator)
    for norm, name in (("max", "maximum_calibration_error"), ("l2", "rms_calibration_error")):
        option, alone = get_metric("expected_calibration_error", norm=norm), get_metric(name)
        option.update(logits, target)
        alone.update(logits, target)
        assert torch.equal(option.compute(), alone.compute())
    with pytest.raises(MetricOptionError, match=r"norm is .*got .l3."):
        get_metric("expected_calibration_error", norm="l3")


@pytest.mark.parametrize("name", ["expected_calibration_error", "maximum_calibration_error", "rms_calibration_error"])
def test_errors_of_probabilities_lie_in_0_and_1(name):
    assert get_metric(name).value_range == (0.0, 1.0)
