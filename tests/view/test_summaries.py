"""What tables show is read from the results file alone, whatever else is in it."""

import json
import math

import pytest
from support.result_files import write_results

from xent_metrics.errors import ComparisonError
from xent_metrics.view.summaries import Reported, read_summary


def test_tasks_groups_and_facts(tmp_path):
    values = {"t": {"acc": 0.5, "acc_stderr": 0.1}, "g": {"acc": 0.25}}
    more = {"groups": {"g": {"acc,none": 0.25}}, "group_subtasks": {"g": ["t"]}, "lm_eval_version": "0.4.13"}
    run = read_summary(write_results(tmp_path / "step5", values, **more), "step5")
    assert (run.key, run.name, run.model, run.date) == ("step5", "step5", "m", "2026-11-01 12:00")
    assert run.training.step == 5
    assert run.tasks["t"].values == {"acc": Reported(0.5, 0.1)}
    assert (run.tasks["t"].documents, run.tasks["t"].is_group) == (100, False)
    assert (run.tasks["g"].is_group, run.tasks["g"].subtasks) == (True, ("t",))
    assert math.isnan(run.tasks["g"].values["acc"].error)
    assert run.facts == {"lm-eval's model": "hf", "model args": "pretrained=m", "lm eval version": "0.4.13"}
    assert run.problems == ()


def test_filters_stay_in_the_names_of_metrics(tmp_path):
    found = {"exact_match,strict": 0.5, "exact_match_stderr,strict": 0.1, "alias": "t"}
    path = write_results(tmp_path, {"t": {}}, results={"t": found})
    assert read_summary(path, "a").tasks["t"].values == {"exact_match,strict": Reported(0.5, 0.1)}


def test_a_folder_that_lm_eval_named_at_random_is_not_the_models_name(tmp_path):
    config = {"model": "xent-torch", "model_args": "checkpoint=last.ckpt"}
    path = write_results(tmp_path / "step=15" / "umlxhtps", {"t": {}}, config=config, model_name="umlxhtps")
    run = read_summary(path, "step=15/umlxhtps later")
    assert (run.key, run.name, run.model) == ("step=15/umlxhtps later", "step=15 later", "xent-torch")
    assert run.training.series == "step=… later"
    assert read_summary(path, "umlxhtps").name == "umlxhtps"


def test_a_task_without_values_is_named(tmp_path):
    path = write_results(tmp_path, {"t": {"acc": 0.5}}, results={"t": {"acc": 0.5}, "u": [1], "v": {"acc,none": 1}})
    run = read_summary(path, "a")
    assert list(run.tasks) == ["t", "v"]
    assert run.problems == (
        "task t: no values; expected keys such as `acc,none`, with a metric and a filter",
        "task u: its results are list, not values by metric",
    )


@pytest.mark.parametrize("more", [{"n-samples": 3}, {"groups": []}, {"config": None}, {"group_subtasks": {"t": 3}}])
def test_parts_of_another_schema_are_passed_over(tmp_path, more):
    assert read_summary(write_results(tmp_path, {"t": {"acc": 1.0}}, **more), "a").tasks["t"].values["acc"].value == 1


@pytest.mark.parametrize("text", ["", '{"results": {"t": {"acc,no', "[]", json.dumps({"results": {"t": {"acc": 0.5}}})])
def test_half_a_file_and_another_schema_are_errors_that_name_it(tmp_path, text):
    path = tmp_path / "results_2026.json"
    path.write_text(text)
    with pytest.raises(ComparisonError, match=r"results_2026\.json"):
        read_summary(path, "a")


def test_a_rescored_run_names_the_run_that_it_comes_from(tmp_path):
    path = write_results(tmp_path, {"t": {"acc": 0.5}}, rescored={"run": "runs/a/results_x.json"})
    facts = read_summary(path, "a").facts
    assert facts["rescored from"] == "runs/a/results_x.json, by xent rescore, without the model"
