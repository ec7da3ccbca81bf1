"""Ranking, whole distributions and binary targets: against 50 digits, scikit-learn, scipy and values worked out by hand."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from support import reference_family
from torch.nn import functional as F

from xent_metrics import (
    BinaryCrossEntropy,
    BrierScore,
    CrossEntropy,
    ExpectedCalibrationError,
    MeanReciprocalRank,
    PredictionEntropy,
    TokenAccuracy,
    TokenMetricCollection,
    TopKAccuracy,
    ZLoss,
    get_metric,
    metrics,
    score_tokens,
)
from xent_metrics.analysis import StandardError
from xent_metrics.errors import InvalidInputError, InvalidTargetError, MetricOptionError, MissingScoreError
from xent_metrics.metrics.pair_metric import PairMetric
from xent_metrics.testing.contract import check_metric
from xent_metrics.wrappers.standard_error import standard_error

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
OPTIONS = {"top_k_accuracy": [{}, {"k": 1}, {"k": 2}, {"k": 13}]}
FAMILY = ["top_k_accuracy", "mean_reciprocal_rank", "prediction_entropy", "brier_score", "z_loss"]


def value(metric, *args, **kwargs):
    metric.update(*args, **kwargs)
    return metric.compute()


def test_every_built_in_has_a_reference():
    """The metrics of two models apart, which have theirs in their own tests."""
    modules = [
        importlib.import_module(f"support.{path.stem}")
        for path in Path(reference_family.__file__).parent.glob("reference*.py")
    ]
    found = {name for module in modules for name in module.REFERENCES}
    classes = [getattr(metrics, name) for name in metrics.__all__]
    assert {metric.name for metric in classes if not issubclass(metric, PairMetric)} <= found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name in FAMILY for options in OPTIONS.get(name, [{}])]
)
def test_metrics_are_those_of_fifty_digits(name, options, dtype, batch):
    logits, target = batch[0].to(dtype), batch[1]
    rows, targets = logits.double().flatten(0, 1).tolist(), target.flatten().tolist()
    want = reference_family.REFERENCES[name](rows, targets, **options)
    got = value(get_metric(name, **options), logits, target)
    assert got.item() == pytest.approx(float(want), rel=1e-13 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("metric", [TopKAccuracy(k=3), BinaryCrossEntropy(from_logits=False)], ids=repr)
def test_options_keep_the_contract(metric):
    check_metric(metric, seed=1)


class TestRanks:
    def test_top_k_is_scikit_learns(self):
        logits, target = torch.randn(200, 9), torch.randint(9, (200,))
        for k in (1, 2, 3, 8):
            want = sklearn.metrics.top_k_accuracy_score(target.numpy(), logits.numpy(), k=k, labels=np.arange(9))
            assert value(TopKAccuracy(k=k), logits, target).item() == pytest.approx(want, rel=1e-14)
        assert value(TopKAccuracy(k=9), logits, target) == 1

    def test_the_mean_reciprocal_rank_is_scikit_learns_ranking_precision_of_one_relevant_class(self):
        logits, target = torch.randn(200, 9), torch.randint(9, (200,))
        relevant = F.one_hot(target, 9).numpy()
        want = sklearn.metrics.label_ranking_average_precision_score(relevant, logits.numpy())
        assert value(MeanReciprocalRank(), logits, target).item() == pytest.approx(want, rel=1e-14)

    def test_ties_go_to_the_lower_id_as_in_a_stable_sort(self):
        logits = torch.randint(3, (300, 12)).to(torch.bfloat16)
        target = torch.randint(12, (300,))
        order = logits.float().sort(dim=-1, descending=True, stable=True).indices
        rank = 1 + (order == target[:, None]).int().argmax(-1)
        for k in (1, 4, 11):
            assert value(TopKAccuracy(k=k), logits, target) == (rank <= k).double().mean()
        torch.testing.assert_close(value(MeanReciprocalRank(), logits, target), (1 / rank.double()).mean())

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_top_1_is_the_accuracy_also_where_log_probabilities_tie(self, dtype):
        """Logits that differ by less than is left of them beside the normaliser; rows with nan and infinities."""
        logits = torch.randn(400, 6, dtype=torch.float64).mul(1e-9).to(dtype)
        logits[:100] = torch.randn(100, 6).to(dtype)
        logits[::7, 2], logits[::11, 4], logits[::13, 1] = math.nan, math.inf, -math.inf
        target = torch.randint(6, (400,))
        metric = TopKAccuracy(k=1)
        scores = metric.score(logits, target)
        of_finite = ~scores.nll.isnan()
        assert torch.equal(metric.per_token(scores)[of_finite], scores.correct[of_finite])
        accuracy = TokenAccuracy()
        for each in (metric, accuracy):
            each.update(scores)
        assert metric.compute(nan_policy="omit") == accuracy.compute(nan_policy="omit")

    @pytest.mark.parametrize("k", [0, -1, 2.0, True, None])
    def test_k_is_a_whole_number(self, k):
        with pytest.raises(MetricOptionError, match="top_k_accuracy: k is a whole number of at least 1; got"):
            get_metric("top_k_accuracy", k=k)


class TestDistributions:
    def test_entropy_is_scipys(self):
        logits = 3 * torch.randn(50, 20, dtype=torch.float64)
        want = scipy.stats.entropy(logits.softmax(-1).numpy(), axis=1).mean()
        assert value(PredictionEntropy(), logits, torch.zeros(50).long()).item() == pytest.approx(want, rel=1e-12)

    def test_brier_is_scikit_learns_whose_binary_one_is_half(self):
        logits, target = 2 * torch.randn(80, 5, dtype=torch.float64), torch.randint(5, (80,))
        want = sklearn.metrics.brier_score_loss(target.numpy(), logits.softmax(-1).numpy(), labels=np.arange(5))
        assert value(BrierScore(), logits, target).item() == pytest.approx(want, rel=1e-12)
        logits, target = logits[:, :2], target % 2
        half = sklearn.metrics.brier_score_loss(target.numpy(), logits.softmax(-1).numpy()[:, 1])
        assert value(BrierScore(), logits, target).item() == pytest.approx(2 * half, rel=1e-12)

    def test_values_by_hand(self):
        certain, wrong = torch.tensor([[1e4, 0.0, 0.0]]), torch.tensor([1])
        assert value(BrierScore(), certain, wrong) == 2
        assert value(BrierScore(), certain, torch.tensor([0])) == 0
        assert value(BrierScore(), torch.zeros(1, 4), wrong).item() == 0.75**2 + 3 / 16
        assert value(PredictionEntropy(), certain, wrong) == 0
        assert value(ZLoss(), certain, wrong) == 1e8
        normalised = torch.randn(5, 7, dtype=torch.float64).log_softmax(-1)
        assert value(ZLoss(), normalised, torch.arange(5)) < 1e-28
        assert value(ZLoss(), normalised + 3, torch.arange(5)).item() == pytest.approx(9, rel=1e-12)

    def test_classes_that_are_masked_out_have_no_share(self):
        logits = torch.tensor([[0.0, 0.0, -math.inf]])
        assert value(PredictionEntropy(), logits, torch.tensor([0])).item() == pytest.approx(math.log(2))
        assert value(BrierScore(), logits, torch.tensor([0])).item() == pytest.approx(0.5)
        assert value(BrierScore(), logits, torch.tensor([2])).item() == pytest.approx(1.5)

    @pytest.mark.parametrize("metric", [PredictionEntropy(), BrierScore(), ZLoss()], ids=lambda metric: metric.name)
    def test_nan_is_counted(self, metric):
        metric.update(torch.tensor([[0.0, math.nan], [0.0, 0.0]]), torch.tensor([0, 0]))
        assert metric.counts()["nan"] == 1
        with pytest.warns(UserWarning, match="1 of 2 rows gave nan"):
            assert metric.compute().isnan()

    def test_scores_without_the_extra_scores_one_say_how_to_get_it(self):
        scores = score_tokens(torch.zeros(2, 3), torch.tensor([0, 1]))
        with pytest.raises(
            MissingScoreError, match=r"z_loss needs `squared_log_normaliser`.*extra_scores=metric\.extra_scores"
        ):
            ZLoss().update(scores)
        metric = ZLoss()
        metric.update(score_tokens(torch.zeros(2, 3), torch.tensor([0, 1]), extra_scores=metric.extra_scores()))
        assert metric.compute().item() == pytest.approx(math.log(3) ** 2)

    def test_a_collection_takes_them_all_in_one_pass(self, batch):
        names = ["cross_entropy", *FAMILY]
        together = TokenMetricCollection(names)
        together.update(*batch)
        assert {name: value(get_metric(name), *batch) for name in names} == together.compute()


class TestBinary:
    forecasts = 4 * torch.randn(60, generator=torch.Generator().manual_seed(2))
    target = torch.randint(2, (60,), generator=torch.Generator().manual_seed(3))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("from_logits", [True, False])
    def test_it_is_that_of_fifty_digits(self, from_logits, dtype):
        forecasts = (self.forecasts if from_logits else self.forecasts.sigmoid()).to(dtype)
        target = self.target.clone()
        target[::9] = -100
        if not from_logits and dtype in (torch.float16, torch.bfloat16):
            forecasts = forecasts.clamp(0.01, 0.99)  # which round to 0 or 1
        want = reference_family.binary_cross_entropy(forecasts.tolist(), target.tolist(), from_logits)
        got = value(BinaryCrossEntropy(from_logits=from_logits), forecasts, target)
        assert got.item() == pytest.approx(float(want), rel=1e-12)

    def test_it_is_torchs_and_scikit_learns(self):
        forecasts, target = self.forecasts.double().reshape(4, 15), self.target.reshape(4, 15)
        prob = forecasts.sigmoid()
        want = F.binary_cross_entropy_with_logits(forecasts, target.double())
        torch.testing.assert_close(value(BinaryCrossEntropy(), forecasts, target), want, rtol=1e-12, atol=0)
        want = F.binary_cross_entropy(prob, target.double())
        torch.testing.assert_close(value(BinaryCrossEntropy(from_logits=False), prob, target), want, rtol=1e-12, atol=0)
        want = sklearn.metrics.log_loss(target.flatten(), prob.flatten())
        assert value(BinaryCrossEntropy(), forecasts, target == 1).item() == pytest.approx(want, rel=1e-12)

    def test_soft_targets_are_torchs(self):
        forecasts, target = self.forecasts.double(), torch.rand(60, dtype=torch.float64)
        want = F.binary_cross_entropy_with_logits(forecasts, target)
        torch.testing.assert_close(value(BinaryCrossEntropy(), forecasts, target), want, rtol=1e-12, atol=0)

    def test_extremes(self):
        assert value(BinaryCrossEntropy(), torch.tensor([1e4, -1e4]), torch.tensor([1, 0])) == 0
        assert value(BinaryCrossEntropy(), torch.tensor([1e4, -1e4]), torch.tensor([0, 1])) == 1e4
        certain = torch.tensor([0.0, 1.0])
        assert value(BinaryCrossEntropy(from_logits=False), certain, torch.tensor([0, 1])) == 0
        assert value(BinaryCrossEntropy(from_logits=False), certain, torch.tensor([1, 1])) == math.inf
        tiny = torch.tensor([1e-30])
        assert value(BinaryCrossEntropy(from_logits=False), tiny, torch.tensor([1])).item() == pytest.approx(
            30 * math.log(10), rel=1e-7
        )
        with pytest.warns(UserWarning, match="1 of 1 rows gave nan"):
            assert value(BinaryCrossEntropy(from_logits=False), torch.tensor([1.5]), torch.tensor([1])).isnan()

    def test_other_targets_are_invalid(self):
        metric = BinaryCrossEntropy()
        metric.update(self.forecasts, torch.full((60,), 2))
        with pytest.raises(InvalidTargetError, match="60 targets"):
            metric.compute()
        metric = BinaryCrossEntropy()
        metric.update(self.forecasts, torch.full((60,), 1.5))
        with pytest.raises(InvalidTargetError, match="60 targets"):
            metric.compute()

    def test_two_logits_a_row_and_one_are_the_same(self):
        logits = torch.randn(40, 2, dtype=torch.float64)
        target = torch.arange(40) % 2
        one = value(BinaryCrossEntropy(), logits[:, 1] - logits[:, 0], target)
        torch.testing.assert_close(one, value(CrossEntropy(), logits, target), rtol=1e-12, atol=0)
        assert value(BinaryCrossEntropy(), score_tokens(logits, target)) == value(CrossEntropy(), logits, target)

    def test_every_metric_takes_binary_scores(self):
        scores = score_tokens(self.forecasts, self.target, binary="logits")
        accuracy = (self.forecasts > 0).long() == self.target
        assert value(TokenAccuracy(), scores) == accuracy.double().mean()
        together = TokenMetricCollection(
            [CrossEntropy(), BinaryCrossEntropy(), BrierScore(), ExpectedCalibrationError()]
        )
        together.update(self.forecasts, self.target)
        values = together.compute()
        assert values["binary_cross_entropy"] == values["cross_entropy"]
        want = 2 * sklearn.metrics.brier_score_loss(self.target, self.forecasts.double().sigmoid())
        assert values["brier_score"].item() == pytest.approx(want, rel=1e-12)

    def test_what_is_not_one_number_a_target_is_refused(self):
        with pytest.raises(
            InvalidInputError, match=r"binary logits as floats of the targets' shape \(3,\); got \(3, 2\)"
        ):
            BinaryCrossEntropy().update(torch.zeros(3, 2), torch.zeros(3).long())
        with pytest.raises(InvalidInputError, match=r"got \(3,\) of torch.int64"):
            BinaryCrossEntropy().update(torch.zeros(3).long(), torch.zeros(3).long())
        with pytest.raises(InvalidInputError, match="takes scores of two classes; got 5"):
            BinaryCrossEntropy().update(score_tokens(torch.zeros(1, 5), torch.tensor([1])))
        with pytest.raises(InvalidInputError, match="binary is 'logits' or 'probabilities'; got 'odds'"):
            score_tokens(torch.zeros(3), torch.zeros(3).long(), binary="odds")


@pytest.mark.parametrize("name", FAMILY)
def test_standard_errors_are_those_of_the_documents(name):
    logits, target = torch.randn(12, 7, 8), torch.randint(8, (12, 7))
    metric = get_metric(name)
    error = StandardError(metric)
    scores = metric.score(logits, target)
    error.update(scores)
    states = torch.stack([metric.exact_sums(scores[row]) for row in range(12)])
    assert error.compute().item() == pytest.approx(standard_error(metric, states), rel=1e-9)
    assert error.compute() > 0
