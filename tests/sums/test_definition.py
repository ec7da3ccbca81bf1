"""MetricDefinition: options and the names of shared sums."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from xent_metrics import TOKENS, RatioMetric, SharedSum, TokenMetric, TokenScores, score_tokens
from xent_metrics.errors import InvalidInputError, MetricOptionError


class OddlyNamed(RatioMetric):
    """Its options are called like a method and a property of every metric."""

    name = "oddly_named"

    def __init__(self, counts: int = 3, state: str = "solid", **kwargs):
        super().__init__(**kwargs)
        self._counts = counts

    def per_token(self, scores):
        return self._counts * scores.nll


def test_an_option_may_be_called_like_an_attribute_of_every_metric():
    assert OddlyNamed(4).described() == "oddly_named(counts=4, state='solid')"
    assert OddlyNamed(4).counts()["counted"] == 0


@dataclass(frozen=True)
class Scaled(SharedSum):
    factor: float

    @property
    def name(self):
        return "scaled"

    def terms(self, scores):
        return scores.weighted(self.factor * scores.nll)


class Two(TokenMetric):
    name = "two"

    def __init__(self, second: float = 2.0, **kwargs):
        super().__init__(**kwargs)
        self.second = second

    def shared_sums(self):
        return Scaled(1.0), Scaled(self.second), TOKENS

    def value(self, sums):
        return sums["scaled"] / sums["tokens"]


def test_a_metric_cannot_read_two_shared_sums_of_one_name():
    message = r"two: Scaled\(factor=1\.0\) and Scaled\(factor=2\.0\) have one name, 'scaled'"
    with pytest.raises(MetricOptionError, match=message):
        Two()
    assert list(Two(1.0).layout.rows) == ["scaled", "tokens"]


def test_scores_of_no_rows_are_of_a_kind_that_the_metric_takes():
    class OfDocuments(OddlyNamed):
        row_kinds = frozenset({"document", "choice"})

    assert OddlyNamed().row_kinds > {"token"}
    assert OddlyNamed().empty_scores().row_kind == "token"
    assert OfDocuments().empty_scores().row_kind == "choice"


def test_scores_that_ignored_another_target_are_refused(batch):
    scores = score_tokens(*batch, ignore_index=3)
    OddlyNamed(ignore_index=3).check_scores(scores)
    OddlyNamed().check_scores(TokenScores.empty())
    with pytest.raises(
        InvalidInputError, match="oddly_named has ignore_index=-100; got scores made with ignore_index=3"
    ):
        OddlyNamed().check_scores(scores)
