"""RatioMetric: its sums' names, its terms, and shared sums."""

from __future__ import annotations

import pytest
import torch
from support.metric_kinds import used

from xent_metrics import NATS, TOKENS, BitsPerByte, CrossEntropy, RatioMetric
from xent_metrics.errors import InvalidInputError, MetricOptionError


def test_shared_sums_in_another_order_are_the_same_state(batch):
    class TokensPerNat(RatioMetric):
        name = "tokens_per_nat"

        def sum_names(self):
            return TOKENS, NATS

        def per_token(self, scores):
            raise AssertionError("a shared sum brings its own terms")

    metric = TokensPerNat()
    metric.merge_state(used(CrossEntropy(), *batch))
    torch.testing.assert_close(metric.compute(), 1 / used(CrossEntropy(), *batch).compute(), rtol=1e-15, atol=0)
    assert torch.equal(metric.state, used(TokensPerNat(), *batch).state)


class Scaled(RatioMetric):
    name = "scaled"

    def __init__(self, scale: float = 1.0, **more):
        super().__init__(**more)
        self.scale = scale

    def per_token(self, scores):
        return self.scale * scores.nll


class Half(Scaled):
    """A subclass of a plugin's metric that fixes an option, and names the keywords its own way."""

    def __init__(self, **others):
        super().__init__(scale=0.5, **others)


class Named(Scaled):
    def __init__(self, label: str = "x", **others):
        super().__init__(**others)


def test_options_reach_the_sums_names_however_they_are_given():
    assert Scaled(2.0).described() == Scaled(scale=2.0).described() == "scaled(scale=2.0)"
    assert Half().described() == Scaled(0.5).described()
    assert Named(scale=3.0).described() == "scaled(label='x', scale=3.0)"
    assert repr(Named(scale=3.0, ignore_index=7)) == "Named(label='x', scale=3.0, ignore_index=7)"
    assert list(Named.options()) == ["label", "scale", "ignore_index"]
    tables = [torch.arange(4), torch.arange(4) + 1]
    names = {tuple(BitsPerByte(token_bytes=table).sum_names()) for table in [*tables, tables[0].clone(), None]}
    assert len(names) == 3


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (lambda scores: scores.nll.sum(), r"per_token gives a term of each row, here a tensor \(0,\); got \(\)"),
        (lambda scores: None, r"per_token gives a term of each row, .*; got NoneType"),
        (
            lambda scores: scores.nll[0],
            r"with scores that have no rows, and raised IndexError: .*They take any number of rows",
        ),
        (lambda scores: scores.nll if len(scores) == 0 else scores.nll.mean(), r"here a tensor \(3,\); got \(\)"),
    ],
)
def test_a_term_that_is_none_of_each_row_is_an_error(term, message):
    """A single number would be taken for that of every row."""

    class Odd(RatioMetric):
        name = "odd"

        def per_token(self, scores):
            return term(scores)

    with pytest.raises((InvalidInputError, MetricOptionError), match=message):
        Odd().update(torch.zeros(3, 4), torch.tensor([0, 1, 2]))


def test_numerator_and_denominator_have_two_names():
    class One(Scaled):
        def sum_names(self):
            return "one", "one"

    with pytest.raises(MetricOptionError, match="scaled: numerator and denominator have one name, 'one'"):
        One()
