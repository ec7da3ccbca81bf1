"""The options of a metric, refused and in the names of its sums."""

from __future__ import annotations

import pytest
import torch
from support.metric_kinds import IDS, KINDS, used

from xent_metrics import (
    CrossEntropy,
    TokenAccuracy,
    TokenMetric,
)
from xent_metrics.errors import MetricOptionError


@pytest.fixture(params=KINDS, ids=IDS)
def metric(request) -> TokenMetric:
    return request.param()


@pytest.mark.parametrize(
    "other",
    [
        CrossEntropy(ignore_index=0),
        CrossEntropy(label_smoothing=0.1),
        CrossEntropy(class_weight=torch.ones(13)),
        TokenAccuracy(),
    ],
    ids=["ignore_index", "label_smoothing", "class_weight", "another metric"],
)
def test_other_options_are_other_sums(other, batch):
    metric = used(CrossEntropy(), *batch)
    before = metric.state.clone()
    with pytest.raises(MetricOptionError, match=r"can't take the state of .*their sums differ"):
        metric.merge_state(other)
    metric.persistent(True)
    other = other.clone()
    other.persistent(True)
    with pytest.raises(RuntimeError, match=r"holds the sums of a \w+ with other options"):
        other.load_state_dict(metric.state_dict())
    assert torch.equal(metric.state, before)
    assert not other.state.any()


def test_a_class_refuses_an_option_as_its_name_does():
    with pytest.raises(
        MetricOptionError, match=r"cross_entropy has no option 'label_smoothin'. Did you mean 'label_smoothing'"
    ):
        CrossEntropy(label_smoothin=0.1)
