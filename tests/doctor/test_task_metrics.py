"""What is found in a task's configuration, with the change that mends it, and what isn't found in a sound one."""

import copy

import pytest
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

from xent_metrics.doctor.task_metrics import check_task
from xent_metrics.hosts.lm_eval import XentTask
from xent_metrics.hosts.lm_eval.metric_list import read_metric_list

ACC = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}


def stock(output_type, *entries, **more):
    return {"task": "t", "output_type": output_type, "metric_list": list(entries)} | more


def ours(output_type, *entries, **more):
    return stock(output_type, *entries, **{"class": XentTask} | more)


def kinds(config, model=None):
    return [(finding.kind, finding.severity) for finding in check_task(config, "here", model)]


def results(doc, results):
    return {}


@pytest.mark.parametrize(
    "config",
    [
        stock("multiple_choice", ACC, {"metric": "acc_norm"}),
        stock("multiple_choice", {"metric": "made_up", "aggregation": "mean"}, process_results=results),
        stock("generate_until", {"metric": "exact_match", "ignore_case": True}),
        stock("generate_until", {"metric": results, "aggregation": mean}),
        stock("loglikelihood_rolling", {"metric": "bits_per_byte"}),
        {"task": "t", "output_type": "multiple_choice", "tag": ["a"], "metadata": {"version": 1}},
        ours("multiple_choice", ACC, {"metric": "bits_per_byte"}),
    ],
)
def test_a_sound_task_has_no_findings(config):
    assert kinds(config) == []


@pytest.mark.parametrize(
    ("config", "kind", "severity", "mended"),
    [
        (stock("multiple_choice", {"metric": "acc_nrom"}), "dropped-metric", "error", {"metric": "acc_norm"}),
        (stock("multiple_choice", {"metric": "bleu"}), "dropped-metric", "error", None),
        (stock("multiple_choice", ACC | {"average": "x"}), "ignored-option", "warning", ACC),
        (stock("multiple_choice", {"metric": "acc", "agregation": "mean"}), "ignored-option", "warning",
         {"metric": "acc", "aggregation": "mean"}),
        (stock("generate_until", {"metric": "exact_match", "ignore_case": 1}, process_results=results), "ignored-option",
         "warning", {"metric": "exact_match"}),
        (stock("multiple_choice", ACC | {"aggregation": "maen"}), "unknown-aggregation", "error", ACC),
        (stock("multiple_choice", ACC | {"aggregation": "best"}), "unknown-aggregation", "error", None),
        (stock("generate_until", {"metric": "made_up"}, process_results=results), "missing-aggregation", "error", None),
        (stock("generate_until", {"metric": "exact_mach", "aggregation": "mean"}), "unregistered-metric", "warning",
         {"metric": "exact_match", "aggregation": "mean"}),
        (stock("multiple_choice", "acc"), "broken-entry", "error", None),
        (stock("loglikelihood", {"metric": "perplexity"}), "document-perplexity", "note", None),
        (stock("loglikelihood_rolling", {"metric": "bits_per_byte"}, process_results=results), "other-bytes", "note", None),
        (ours("multiple_choice", {"metric": "bits_per_bite"}), "unknown-metric", "error", {"metric": "bits_per_byte"}),
        (ours("multiple_choice", {"metric": "cross_entropy", "aggregation": "mean"}), "metric-option", "error",
         {"metric": "cross_entropy"}),
        (ours("multiple_choice", {"metric": "acc", "agregation": "mean"}), "metric-option", "error",
         {"metric": "acc", "aggregation": "mean"}),
        (ours("multiple_choice", {"metric": "acc", "aggregation": "maen"}), "metric-option", "error",
         {"metric": "acc", "aggregation": "mean"}),
        (ours("multiple_choice", {"metric": "cross_entropy", "unit": "bytes"}), "metric-option", "error", None),
        (ours("multiple_choice", {"metric": "bits_per_byte", "over": "choices"}), "missing-score", "error", None),
    ],
)  # fmt: skip
def test_each_kind_is_found_and_mended_where_that_is_possible(config, kind, severity, mended):
    [finding] = check_task(config, "here")
    assert (finding.kind, finding.severity, finding.place) == (kind, severity, "here")
    assert (finding.mend is None) == (mended is None)
    if mended is not None:
        content = copy.deepcopy(config)
        finding.mend(content)
        assert content["metric_list"] == [mended]
        assert not [each for each in check_task(content, "here") if each.kind == kind]


def test_a_metric_of_ours_needs_our_class():
    [finding] = check_task(stock("multiple_choice", {"metric": "cross_entropy"}), "here")
    assert (finding.kind, finding.severity) == ("needs-xent-task", "error")
    assert "class: !function xent_metrics.hosts.lm_eval.XentTask" in finding.text
    assert finding.mend is not None


def test_a_key_that_no_task_has_is_renamed():
    config = stock("multiple_choice", ACC, num_fewshots=3)
    [finding] = check_task(config, "here")
    assert finding.kind == "unknown-key"
    finding.mend(config)
    assert config["num_fewshot"] == 3
    assert kinds(config) == []


def test_every_entry_of_ours_is_checked_and_then_all_together():
    entry = {"metric": "cross_entropy"}
    config = ours("multiple_choice", {"metric": "nothing"}, entry, {"metric": "cross_entropy", "units": 1})
    assert kinds(config) == [("unknown-metric", "error"), ("metric-option", "error")]
    [finding] = check_task(ours("multiple_choice", entry, entry), "here")
    assert "appears twice" in finding.text


def test_a_task_in_python_is_only_named():
    assert kinds({"task": "t", "class": dict}) == [("python-task", "note")]


@pytest.mark.parametrize(
    ("entry", "feeds"),
    [
        ({"metric": "bits_per_byte"}, {"hf", "xent-completions", "xent-hf", "xent-torch"}),
        ({"metric": "perplexity"}, {"xent-completions", "xent-hf", "xent-torch"}),
        ({"metric": "prediction_entropy"}, {"xent-hf", "xent-torch"}),
        ({"metric": "bits_per_byte", "by": "position"}, {"xent-completions", "xent-hf", "xent-torch"}),
        ({"metric": "expected_calibration_error", "over": "choices"}, {"hf", "xent-completions", "xent-hf", "xent-torch"}),
    ],
)  # fmt: skip
def test_a_model_feeds_what_it_gives(entry, feeds):
    config = ours("multiple_choice", entry)
    read_metric_list(config)
    models = {"hf", "xent-completions", "xent-hf", "xent-torch"}
    found = {model: kinds(config, model) for model in models}
    assert {model for model, each in found.items() if not each} == feeds
    assert all(each == [("model-cannot-score", "error")] for model, each in found.items() if model not in feeds)


def test_a_model_that_does_not_generate_is_named():
    generation = stock("generate_until", {"metric": "exact_match"})
    assert kinds(generation, "xent-torch") == [("model-cannot-generate", "error")]
    assert kinds(generation, "hf") == []
    gold = ours("generate_until", {"metric": "bits_per_byte"}, doc_to_target="{{a}}")
    assert kinds(gold, "xent-torch") == []


def test_lm_eval_itself_fails_where_no_aggregation_is_known():
    config = stock("generate_until", {"metric": "made_up"}, process_results=results, dataset_path="json")
    assert ("missing-aggregation", "error") in kinds(config)
    with pytest.raises(KeyError):
        ConfigurableTask(config=config)


def test_lm_eval_itself_refuses_a_key_that_no_task_has():
    config = stock("multiple_choice", ACC, num_fewshots=3, dataset_path="json")
    assert kinds(config) == [("unknown-key", "error")]
    with pytest.raises(TypeError, match="num_fewshots"):
        ConfigurableTask(config=config)


def test_a_metric_of_ours_with_an_aggregation_needs_our_class_unless_the_task_may_emit_it():
    entry = {"metric": "token_accuracy", "aggregation": "mean"}
    [finding] = check_task(stock("loglikelihood_rolling", entry), "t")
    assert finding.kind == "needs-xent-task"
    assert check_task(stock("loglikelihood_rolling", entry, process_results=results), "t") == []


def test_an_entry_that_is_a_name_alone_is_told_how_to_be_written():
    [finding] = check_task(stock("loglikelihood_rolling", "acc"), "t")
    assert finding.text == "an entry of metric_list is `metric: name` with options; got 'acc'. Write `- metric: acc`"
