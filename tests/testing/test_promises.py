"""Metrics that break each promise, and what check_metric says of them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from support.broken_metrics import BROKEN

from xent_metrics import Binned, ExpectedCalibrationError
from xent_metrics.metrics.confidence_bins import BinSum
from xent_metrics.testing import check_metric
from xent_metrics.testing.promises import PROMISES


@pytest.mark.parametrize(
    ("promise", "kind"),
    [(p, k) for p, kinds in BROKEN.items() for k in (kinds if isinstance(kinds, tuple) else [kinds])],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_promise_is_named_with_the_metric(promise, kind):
    with pytest.raises(AssertionError) as error:
        check_metric(kind())
    assert str(error.value).startswith("broken ")
    assert promise in str(error.value)


def test_every_promise_is_seen_broken():
    for promise in PROMISES:
        assert any(key.startswith(promise) for key in BROKEN), promise


@dataclass(frozen=True)
class ForgetfulSum(BinSum):
    """A shared sum with a name that leaves out the number of bins."""

    @property
    def name(self):
        return f"confidence_bins.{self.kind}"

    def terms(self, scores):
        term = super().terms(scores)
        return Binned(term.values, term.bins, 64)


class ForgetfulCalibrationError(ExpectedCalibrationError):
    def _sum(self, kind):
        return ForgetfulSum(kind, self.binning, self.num_bins)


def test_a_built_in_that_loses_its_option_is_caught():
    with pytest.raises(AssertionError, match="option num_bins changes what is added"):
        check_metric(ForgetfulCalibrationError())
