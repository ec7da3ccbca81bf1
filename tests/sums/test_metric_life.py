"""The life of metrics in any order of calls, beside a plain list of fractions."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterable
from fractions import Fraction

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, multiple, rule

from xent_metrics import CrossEntropy, StandardError, TokenMetricCollection, TokenScores
from xent_metrics.sums.exact_sum import to_fraction

UNIT = 2**64
#: nll, weight and whether the row counts.
Row = tuple[float, float, bool]
ROWS = st.lists(
    st.tuples(
        st.one_of(st.floats(0.0, 2.0**40), st.floats(0.0, 2.0**-30), st.sampled_from([0.0, 1e4])),
        st.one_of(st.floats(0.0, 4.0), st.sampled_from([1.0, 2.0**-60, 2.0**20])),
        st.booleans(),
    ),
    max_size=5,
)


def scores_of(rows: Iterable[Row]) -> TokenScores:
    nll, weight, counted = zip(*rows, strict=True) if rows else ((), (), ())
    weights = torch.tensor(weight, dtype=torch.float64)
    return TokenScores(
        nll=torch.tensor(nll, dtype=torch.float64),
        counted=torch.tensor(counted, dtype=torch.bool) & (weights != 0),
        correct=torch.tensor(nll, dtype=torch.float64) < 1,
        confidence=torch.full((len(rows),), 0.5),
        weight=weights,
    )


def exact(value: float) -> Fraction:
    """The nearest multiple of 2^-64."""
    return Fraction(round(Fraction(value) * UNIT), UNIT)


class Life(RuleBasedStateMachine):
    """Each metric goes with the rows that it should hold."""

    metrics = Bundle("metrics")

    @initialize(target=metrics)
    def build_two(self):
        return multiple((CrossEntropy(), []), (CrossEntropy(), []))

    @rule(target=metrics)
    def build(self):
        return CrossEntropy(), []

    @rule(target=metrics, pair=consumes(metrics), rows=ROWS, how=st.sampled_from(["update", "forward", "together"]))
    def add(self, pair, rows, how):
        metric, held = pair
        scores = scores_of(rows)
        if how == "update":
            metric.update(scores)
        elif how == "forward":
            alone = CrossEntropy()
            alone.update(scores)
            value = metric(scores)
            assert torch.equal(value.isnan(), alone.value_of(alone.state).isnan())
            assert value.isnan() or value == alone.value_of(alone.state)
        else:
            TokenMetricCollection({"a": metric, "b": StandardError("cross_entropy")}).update(scores)
        return self.checked(metric, held + rows)

    @rule(target=metrics, pair=consumes(metrics), other=metrics, by_state=st.booleans())
    def merge(self, pair, other, by_state):
        metric, held = pair
        if len(held) + len(other[1]) > 60:
            return pair
        metric.merge_state(other[0].metric_state if by_state else other[0])
        return self.checked(metric, held + other[1])

    @rule(target=metrics, pair=consumes(metrics))
    def reset(self, pair):
        pair[0].reset()
        return self.checked(pair[0], [])

    @rule(
        target=metrics,
        pair=consumes(metrics),
        how=st.sampled_from(["clone", "deepcopy", "pickle"]),
        which=st.booleans(),
    )
    def copied(self, pair, how, which):
        metric, held = pair
        make = {
            "clone": CrossEntropy.clone,
            "deepcopy": copy.deepcopy,
            "pickle": lambda x: pickle.loads(pickle.dumps(x)),
        }
        other = make[how](metric)
        changed, kept = (metric, other) if which else (other, metric)
        changed.update(scores_of([(1.0, 1.0, True)]))
        return multiple(self.checked(kept, held), self.checked(changed, [*held, (1.0, 1.0, True)]))

    @rule(target=metrics, pair=metrics, into=consumes(metrics))
    def checkpoint(self, pair, into):
        metric, held = pair
        metric.persistent(True)
        file = io.BytesIO()
        torch.save(metric.state_dict(), file)
        metric.persistent(False)
        file.seek(0)
        into[0].load_state_dict(torch.load(file, weights_only=True))
        return self.checked(into[0], held)

    @rule(
        target=metrics,
        pair=consumes(metrics),
        move=st.sampled_from(["half", "double", "bfloat16", "to_empty", "to", "type"]),
    )
    def moved(self, pair, move):
        metric, held = pair
        parent = torch.nn.ModuleDict({"metric": metric, "head": torch.nn.Linear(2, 2)})
        given = {"to_empty": {"device": "cpu"}, "to": {"dtype": torch.float16}, "type": {"dst_type": torch.float16}}
        getattr(parent, move)(**given.get(move, {}))
        return self.checked(metric, held)

    @rule(target=metrics, pair=consumes(metrics))
    def computed(self, pair):
        metric, held = pair
        rows = [(nll, weight) for nll, weight, counts in held if counts and weight]
        weights = sum((exact(weight) for _, weight in rows), Fraction())
        if weights > Fraction(len(rows), 2**40):
            nats = sum((exact(nll * weight) for nll, weight in rows), Fraction())
            assert abs(Fraction(metric.compute().item()) - nats / weights) <= nats / weights * Fraction(1, 2**50)
        elif not rows:
            assert metric.value_of(metric.state).isnan()
        return self.checked(metric, held)

    @staticmethod
    def checked(metric: CrossEntropy, held: list[Row]) -> tuple[CrossEntropy, list[Row]]:
        """The pair, after the metric was seen to hold exactly these rows."""
        rows = [(nll, weight) for nll, weight, counts in held if counts and weight]
        sums = metric.layout.by_name(metric.state)
        assert to_fraction(sums["nats"][0]) == sum((exact(nll * weight) for nll, weight in rows), Fraction())
        assert to_fraction(sums["tokens"][0]) == sum((exact(weight) for _, weight in rows), Fraction())
        counts = metric.counts()
        assert (counts["counted"], counts["ignored"]) == (len(rows), len(held) - len(rows))
        return metric, held


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=settings().max_examples // 2, stateful_step_count=20)
