"""0 or 1 of each document: against scipy, the permutation test and published intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xent_metrics import BitsPerByte, CrossEntropy, Perplexity, TokenAccuracy
from xent_metrics.analysis import compare
from xent_metrics.analysis.permutation import permutation_p_value
from xent_metrics.analysis.run_metrics import LoggedMean
from xent_metrics.analysis.zero_one import mcnemar_p_value, newcombe_interval, outcomes, wilson_interval
from xent_metrics.sums.exact_sum import to_float


def table(both, only_a, only_b, neither):
    """Outcomes in A and in B with these counts."""
    cells = [(1.0, 1.0)] * both + [(1.0, 0.0)] * only_a + [(0.0, 1.0)] * only_b + [(0.0, 0.0)] * neither
    return torch.tensor(cells, dtype=torch.float64).unbind(dim=1)


def states(right, metric=None):
    metric = metric or LoggedMean("acc", higher_is_better=True)
    numerator, denominator = metric.ratio_names()
    return metric.pack({numerator: right, denominator: torch.ones(len(right))})


def test_newcombes_interval_is_the_published_one():
    """Newcombe (1998), the first pairing of table II: 36 + 12 against 36 + 2 of 50."""
    a, b = table(36, 12, 2, 0)
    assert newcombe_interval(b, a, 0.95) == pytest.approx((0.0569, 0.3404), abs=1e-4)
    assert newcombe_interval(a, b, 0.95) == pytest.approx((-0.3404, -0.0569), abs=1e-4)


def test_newcombes_correlation_is_corrected_for_continuity():
    """Written out for 20 right in both, 12 in A, 2 in B and 16 in neither, of 50."""
    a, b = table(20, 12, 2, 16)
    (low_a, high_a), (low_b, high_b) = (wilson_interval(each, 0.95) for each in (a, b))
    phi = (20 * 16 - 12 * 2 - 50 / 2) / np.sqrt(32 * 18 * 22 * 28)
    sides = [(0.44 - low_b, high_a - 0.64), (high_b - 0.44, 0.64 - low_a)]
    below, above = (np.sqrt(x**2 - 2 * phi * x * y + y**2) for x, y in sides)
    assert newcombe_interval(a, b, 0.95) == pytest.approx((-0.2 - below, -0.2 + above), rel=1e-9)


def test_runs_that_agree_on_every_document_still_have_an_interval():
    low, high = newcombe_interval(*table(53, 0, 0, 1), 0.95)
    assert -0.1 < low < 0 < high < 0.1


def test_wilsons_interval_is_the_formula():
    right, z, n = torch.tensor([1.0] * 81 + [0.0] * 182), 1.959964, 263
    share = 81 / n
    middle, half = (share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)))
    assert wilson_interval(right, 0.95) == pytest.approx(
        ((middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)), rel=1e-6
    )


@pytest.mark.parametrize("counts", [(3, 4, 1, 2), (2, 0, 5, 3), (5, 0, 0, 5)])
def test_mcnemars_is_the_exact_permutation_test(counts):
    a, b = table(*counts)
    metric = LoggedMean("acc")
    exact = permutation_p_value(metric, to_float(states(a, metric)), to_float(states(b, metric)), num_resamples=2**12)
    assert mcnemar_p_value(a, b) == pytest.approx(exact)


def test_compare_uses_them_for_a_logged_accuracy():
    a, b = table(40, 5, 25, 30)
    found = compare(LoggedMean("acc", higher_is_better=True), states(a), states(b))
    assert (found.test, found.better, found.note) == ("McNemar", "B", "")
    assert found.p_value == mcnemar_p_value(a, b)
    assert (found.low, found.high) == newcombe_interval(a, b, 0.95)
    assert found.difference == pytest.approx(0.2)


def test_only_means_of_one_0_or_1_per_document_are_taken():
    metric = TokenAccuracy()

    def of(correct, tokens, metric=metric):
        names = metric.ratio_names()
        return outcomes(
            metric, to_float(metric.pack(dict(zip(names, map(torch.tensor, (correct, tokens)), strict=True))))
        )

    assert of([1.0, 0.0], [1.0, 1.0]).tolist() == [1, 0]
    assert of([1.0, 0.0], [1.0, 2.0]) is None
    assert of([0.5, 0.0], [1.0, 1.0]) is None
    for other in (Perplexity(), BitsPerByte()):  # whose value is not the mean
        assert of([1.0, 0.0], [1.0, 1.0], other) is None
    assert outcomes(CrossEntropy(), torch.zeros(0, len(CrossEntropy().state))) is None
