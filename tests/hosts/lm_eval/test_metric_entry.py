"""Metrics that no lm-eval model can score are refused when the task is made."""

import pytest
from support.registered import buildable

from xent_metrics import get_metric
from xent_metrics.errors import MissingScoreError
from xent_metrics.hosts.lm_eval.metric_entry import build_entry
from xent_metrics.metrics.pair_metric import PairMetric


def test_binary_and_paired_metrics_are_refused_when_the_task_is_made():
    with pytest.raises(MissingScoreError, match=r"binary_cross_entropy needs tokens scored with `binary`"):
        build_entry({"metric": "binary_cross_entropy"}, "loglikelihood_rolling", "task t")
    for name in buildable():
        if isinstance(get_metric(name), PairMetric):
            with pytest.raises(MissingScoreError, match="no lm-eval model gives it"):
                build_entry({"metric": name}, "loglikelihood_rolling", "task t")


@pytest.mark.parametrize(("over", "unit"), [("choices", "nats per question"), ("gold", "nats per token")])
def test_the_unit_over_the_choices_is_per_question(over, unit):
    assert build_entry({"metric": "cross_entropy", "over": over}, "multiple_choice", "task t").unit == unit
