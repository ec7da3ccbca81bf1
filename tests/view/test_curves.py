"""A metric over training: in the order of the steps, with intervals from the results, on the metric's own scale."""

import math

import pytest
from scipy import stats
from support.result_files import write_results

from xent_metrics.view.curves import curves, interval
from xent_metrics.view.folder import RunFolder
from xent_metrics.view.summaries import Reported


def drawn(root, task="t", metric="acc"):
    folder = RunFolder(root)
    return curves(folder, folder.snapshot(), task, metric)


def test_intervals_are_students_for_the_number_of_documents():
    quantile = stats.t.ppf(0.975, 9)
    assert interval(Reported(2.0, 0.1), 10, log_scale=False) == pytest.approx((2 - 0.1 * quantile, 2 + 0.1 * quantile))
    low, high = interval(Reported(2.0, 0.1), 10, log_scale=True)
    assert math.log(high / 2) == pytest.approx(math.log(2 / low)) == pytest.approx(0.05 * quantile)
    assert interval(Reported(2.0, 0.1), 0, log_scale=False)[1] == pytest.approx(2 + 0.1 * stats.norm.ppf(0.975))


@pytest.mark.parametrize(
    ("value", "error", "documents", "log_scale"), [(2, math.nan, 10, False), (2, 1, 1, False), (-1, 1, 10, True)]
)
def test_without_an_error_there_is_no_interval(value, error, documents, log_scale):
    assert all(map(math.isnan, interval(Reported(value, error), documents, log_scale=log_scale)))


def test_each_training_is_a_line_in_the_order_of_its_steps(tmp_path):
    for training, step, value in (("a", 10, 0.1), ("a", 9, 0.2), ("b", 10, 0.3)):
        write_results(tmp_path / training / f"step{step}", {"t": {"acc": value, "acc_stderr": 0.01}})
    write_results(tmp_path / "last", {"t": {"acc": 0.5}})
    found = drawn(tmp_path)
    [chart] = found["charts"]
    assert (chart.x_label, chart.unit) == ("training step", "lm-eval's own")
    assert {line.name: [dot.title.partition(" ")[0] for dot in line.dots] for line in chart.lines} == {
        "a/step…": ["a/step9:", "a/step10:"],
        "b/step…": ["b/step10:"],
    }
    assert found["unplaced"] == 1
    assert [row["interval"] for row in found["rows"]][-1] == ""


def test_tokens_have_a_chart_of_their_own(tmp_path):
    for tokens in (1, 2):
        write_results(tmp_path / f"step{tokens}00-tokens{tokens}B", {"t": {"acc": 0.5}})
    step, tokens = drawn(tmp_path)["charts"]
    assert (step.x_label, tokens.x_label) == ("training step", "training tokens")
    assert tokens.x_ticks[-1].label == "2B"


@pytest.mark.parametrize(
    ("metric_list", "unit", "symmetric"),
    [
        ([{"metric": "cross_entropy", "unit": "bits", "name": "m"}], "bits per token", True),
        ([{"metric": "perplexity", "name": "m"}], "per token", False),
        (3, "lm-eval's own", True),
    ],
)
def test_unit_and_scale_are_those_of_the_configured_metric(tmp_path, metric_list, unit, symmetric):
    configs = {"t": {"metric_list": metric_list}}
    write_results(tmp_path / "step1", {"t": {"m": 2.0, "m_stderr": 0.5}}, configs=configs)
    found = drawn(tmp_path, metric="m")
    low, high = (float(end) for end in found["rows"][0]["interval"].split(" … "))
    assert found["unit"] == unit
    assert (abs(low + high - 4) < 1e-3) == symmetric


def test_a_group_gets_the_registered_metrics_unit(tmp_path):
    write_results(tmp_path / "step1", {"g": {"perplexity": 2.0}}, configs={}, groups={"g": {"perplexity,none": 2.0}})
    assert drawn(tmp_path, "g", "perplexity")["unit"] == "per token"
