"""The metrics against scikit-learn and the sorted sum, within their own bounds; the contract; errors, and the plot."""

from importlib.metadata import entry_points

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from xent_metrics_selective import ConfidenceAUROC, RiskCoverageArea
from xent_metrics_selective.curves import area, auroc, risk_coverage, sorted_cells

from xent_metrics import CrossEntropy, StandardError, TokenMetricCollection, TokenScores, get_metric, score_tokens
from xent_metrics.metrics import ExpectedCalibrationError
from xent_metrics.metrics.confidence_bins import confidence_cell
from xent_metrics.plugins import Plugins, use_plugins
from xent_metrics.testing import check_metric
from xent_metrics.wrappers.standard_error import standard_error


def made_up(rows, seed=0, length=None):
    """Scores of a model that is right as often as it is confident."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows,) if length is None else (rows, length)
    confidence = torch.rand(shape, generator=generator) ** 0.3
    correct = torch.rand(shape, generator=generator) < confidence
    nll = -torch.where(correct, confidence, (1 - confidence) / 2).log()
    return TokenScores(nll=nll, counted=torch.ones(shape, dtype=torch.bool), confidence=confidence, correct=correct)


def sorted_area(confidence, correct):
    """AURC by its definition, ties in the order given."""
    order = np.argsort(-confidence.numpy(), kind="stable")
    errors = np.cumsum(~correct.numpy()[order])
    return float(np.mean(errors / np.arange(1, len(errors) + 1)))


def updated(metric, scores):
    metric.update(scores)
    return metric


def test_the_area_keeps_the_contract():
    check_metric(RiskCoverageArea())


def test_the_auroc_keeps_the_contract():
    check_metric(ConfidenceAUROC())


@pytest.mark.parametrize("rows", [3, 40, 20_000])
@pytest.mark.parametrize("seed", range(3))
def test_the_value_without_cells_is_within_the_bounds(rows, seed):
    scores = made_up(rows, seed)
    confidence, correct = scores.confidence, scores.correct
    for metric, want in (
        (updated(RiskCoverageArea(), scores), sorted_area(confidence, correct)),
        (updated(ConfidenceAUROC(), scores), roc_auc_score(correct, confidence) if 0 < correct.sum() < rows else None),
    ):
        if want is not None:
            low, high = metric.bounds()
            assert low - 1e-12 <= want <= high + 1e-12
            assert low <= float(metric.compute()) <= high
            assert rows < 1000 or (high - low < 0.006 and abs(float(metric.compute()) - want) < 1e-4)


def test_bounds_are_reached():
    """Both tokens are in one cell: the orders differ by all there is."""
    scores = made_up(2)
    for right_first in (True, False):
        confidence = torch.tensor([0.5, 0.501])
        correct = torch.tensor([not right_first, right_first])
        given = TokenScores(nll=scores.nll, counted=scores.counted, confidence=confidence, correct=correct)
        assert confidence_cell(confidence).unique().numel() == 1
        low, high = updated(RiskCoverageArea(), given).bounds()
        assert sorted_area(confidence, correct) == (low if right_first else high)
        assert updated(ConfidenceAUROC(), given).bounds() == (0, 1)
        assert float(updated(ConfidenceAUROC(), given).compute()) == 0.5


def test_with_one_token_in_each_cell_they_are_exact():
    confidence = torch.linspace(0.02, 0.98, 60, dtype=torch.float64)
    assert confidence_cell(confidence).unique().numel() == 60
    correct = torch.rand(60, generator=torch.Generator().manual_seed(4)) < 0.6
    scores = TokenScores(
        nll=-confidence.log(), counted=torch.ones(60, dtype=torch.bool), confidence=confidence, correct=correct
    )
    assert float(updated(RiskCoverageArea(), scores).compute()) == pytest.approx(
        sorted_area(confidence, correct), rel=1e-12
    )
    assert float(updated(ConfidenceAUROC(), scores).compute()) == pytest.approx(
        roc_auc_score(correct, confidence), rel=1e-12
    )


def test_equal_confidences_count_as_in_random_order():
    """The mean of the sorted area over all orders of six tokens of equal confidence, two of them wrong."""
    correct = np.array([1, 1, 1, 1, 0, 0], dtype=bool)
    orders = [np.random.default_rng(seed).permutation(correct) for seed in range(20_000)]
    mean = np.mean([np.mean(np.cumsum(~each) / np.arange(1, 7)) for each in orders])
    assert float(area(torch.tensor([6.0]).double(), torch.tensor([4.0]).double())) == pytest.approx(mean, abs=0.003)
    assert float(area(torch.tensor([6.0]).double(), torch.tensor([4.0]).double())) == pytest.approx(2 / 6, rel=1e-12)


def test_a_confidence_that_says_nothing_has_the_error_rate_and_one_half():
    tokens, correct = torch.full((2, 256), 1e12, dtype=torch.float64) * torch.tensor([[1.0], [0.75]])
    assert float(area(tokens, correct)) == pytest.approx(0.25, rel=1e-12)
    assert float(auroc(tokens, correct)) == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize(("correct", "error_rate"), [(True, 0.0), (False, 1.0)])
def test_all_right_or_all_wrong(correct, error_rate):
    scores = made_up(9)
    scores = TokenScores(
        nll=scores.nll, counted=scores.counted, confidence=scores.confidence,
        correct=torch.full((9,), correct),
    )  # fmt: skip
    assert float(updated(RiskCoverageArea(), scores).compute()) == pytest.approx(error_rate, abs=1e-12)
    assert updated(ConfidenceAUROC(), scores).compute().isnan()


def test_risk_and_coverage():
    tokens, correct = torch.tensor([1.0, 0.0, 4.0]), torch.tensor([0.0, 0.0, 3.0])
    coverage, risk = risk_coverage(tokens, correct)
    assert coverage.tolist() == pytest.approx([0.8, 0.8, 1.0])
    assert risk.tolist() == pytest.approx([0.25, 0.25, 0.4])
    split = sorted_cells(tokens, correct, right_first=False)
    assert [each.tolist() for each in split] == [[0, 1, 0, 0, 3, 1], [0, 0, 0, 0, 3, 0]]


@pytest.mark.parametrize("metric", [RiskCoverageArea, ConfidenceAUROC])
def test_its_standard_error_is_that_of_documents(metric):
    """By sums of products, by documents, and by leaving each document out."""
    scores = made_up(24, length=60)
    error = updated(StandardError(metric()), scores)
    states = metric().exact_sums_by_sequence(scores)
    assert float(error.compute()) == pytest.approx(standard_error(metric(), states), rel=1e-6)
    total = states.sum(0)
    left_out = torch.stack([metric().value_of(total - state) for state in states])
    jackknife = ((left_out - left_out.mean()).square().sum() * 23 / 24).sqrt()
    assert float(error.compute()) == pytest.approx(float(jackknife), rel=0.1)


def test_it_shares_its_sums_with_calibration_of_equal_mass():
    ece = ExpectedCalibrationError(binning="mass")
    assert set(RiskCoverageArea().shared_sums()) == set(ConfidenceAUROC().shared_sums()) < set(ece.shared_sums())
    collection = TokenMetricCollection([ece, RiskCoverageArea(), CrossEntropy()])
    scores = made_up(50)
    collection.update(scores)
    assert collection.compute()["risk_coverage_area"] == updated(RiskCoverageArea(), scores).compute()


def test_the_plot_is_the_curve():
    from matplotlib import pyplot

    metric = updated(RiskCoverageArea(), made_up(500))
    _, axes = metric.plot()
    curve, random = axes.get_lines()
    coverage, risk = curve.get_xdata(), curve.get_ydata()
    assert (coverage[-1], risk[-1]) == (1.0, pytest.approx(random.get_ydata()[0]))
    assert (np.diff(coverage) > 0).all()
    assert axes.get_title() == f"risk–coverage area {float(metric.compute()):.4f}"
    _, given = pyplot.subplots()
    assert metric.plot(ax=given)[1] is given
    assert metric.plot([metric.compute(), metric.compute()])[1].get_ylabel() == "error rate"
    pyplot.close("all")


def test_the_installed_plugin_registers_them():
    (point,) = entry_points(group="xent_metrics", name="selective")
    with use_plugins(Plugins([point])):
        logits, target = torch.randn(4, 5, 7), torch.randint(7, (4, 5))
        for name, metric in (("risk_coverage_area", RiskCoverageArea()), ("confidence_auroc", ConfidenceAUROC())):
            named = updated(get_metric(name), score_tokens(logits, target))
            assert torch.equal(named.compute(), updated(metric, score_tokens(logits, target)).compute())
