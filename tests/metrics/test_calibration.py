"""The calibration metrics: against 50 digits, scikit-learn, torch, scipy, values by hand, and models that are calibrated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import sklearn.calibration
import torch
from support import reference_family
from torch.nn import functional as F

from xent_metrics import (
    CalibrationWeightedCrossEntropy,
    CrossEntropy,
    ExpectedCalibrationError,
    TokenMetricCollection,
    get_metric,
    score_tokens,
)
from xent_metrics.analysis import StandardError
from xent_metrics.errors import InvalidInputError, MetricOptionError
from xent_metrics.metrics import (
    CalibrationLoss,
    ClasswiseCalibrationError,
    CrossEntropyAtOptimalTemperature,
    FullCalibrationError,
    MaximumCalibrationError,
    OptimalTemperature,
    Overconfidence,
    RefinementLoss,
    RMSCalibrationError,
)
from xent_metrics.metrics.confidence_bins import confidence_cell, equal_mass_bin
from xent_metrics.testing.contract import check_metric
from xent_metrics.wrappers.standard_error import standard_error

KINDS = [
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


@pytest.fixture
def model():
    """Logits of 5 classes and targets that go with them: (2000, 5), (2000,)."""
    logits = 2 * torch.randn(2000, 5, dtype=torch.float64)
    return logits, torch.distributions.Categorical(logits=logits).sample()


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

    def test_bins_of_equal_mass_have_it_as_nearly_as_cells_allow(self, model):
        cells = confidence_cell(model[0].softmax(-1).amax(-1))
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


class TestSplit:
    def test_the_parts_add_up_to_the_cross_entropy(self, model):
        for options in ({}, {"num_bins": 4}, {"binning": "mass"}):
            together = TokenMetricCollection([CrossEntropy(), CalibrationLoss(**options), RefinementLoss(**options)])
            found = value(together, model[0] * 1.5, model[1])
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

    def test_it_falls_to_nothing_when_the_temperature_is_mended(self, model):
        logits, target = model
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


class TestClasses:
    def test_the_full_error_reads_only_the_likeliest_classes(self):
        """As many as there are bins; all others are in the first bin, whose mass is what is left."""
        logits = torch.cat([3 * torch.randn(50, 20), torch.randn(50, 3000) - 4], dim=-1).double()
        target = torch.distributions.Categorical(logits=logits).sample()
        prob, hit = logits.softmax(-1), F.one_hot(target, 3020)
        bins = (prob * 15).ceil().long() - 1
        sums = torch.zeros(15, dtype=torch.float64).index_add(0, bins.flatten(), (hit - prob).flatten())
        want = sums.abs().sum() / 50
        torch.testing.assert_close(value(FullCalibrationError(), logits, target), want, rtol=1e-10, atol=0)
        many = torch.cat([torch.zeros(14), torch.full((90,), -30.0)])[None]  # as many above 1/15 as there can be
        assert value(FullCalibrationError(), many, torch.tensor([3])) < 1e-6
        assert value(FullCalibrationError(), many, torch.tensor([50])).item() == pytest.approx(2, abs=1e-6)

    def test_questions_with_fewer_choices(self):
        few, many = ClasswiseCalibrationError(classes=2), ClasswiseCalibrationError(classes=4)
        logits, target = torch.randn(9, 2), torch.arange(9) % 2
        assert value(many, logits, target).item() == pytest.approx(value(few, logits, target).item() / 2)

    def test_other_numbers_of_classes_are_refused(self):
        with pytest.raises(InvalidInputError, match=r"was built for 2 classes; got 5\. Set classes=5, or the ids"):
            ClasswiseCalibrationError().update(torch.zeros(1, 5), torch.tensor([0]))
        with pytest.raises(InvalidInputError, match="looks at the class 7; got 5 classes, the last of them 4"):
            ClasswiseCalibrationError(classes=[0, 7]).update(torch.zeros(1, 5), torch.tensor([0]))
        for classes in (0, -1, [], [1, 1], [-1, 2]):
            with pytest.raises(MetricOptionError, match="classes is a number of classes, or distinct ids; got"):
                get_metric("classwise_calibration_error", classes=classes)


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

    @pytest.mark.parametrize("range_", [(0, 2), (2, 1), (1, 1), (1, math.inf), (math.nan, 2)])
    def test_the_range_is_one(self, range_):
        with pytest.raises(MetricOptionError, match="optimal_temperature: temperatures have 0 < lowest < highest; got"):
            OptimalTemperature(*range_)


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
