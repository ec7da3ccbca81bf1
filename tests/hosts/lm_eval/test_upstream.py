"""lm-eval's own code, as we found it in the version that is installed."""

import contextlib
import sys

import lm_eval
import lm_eval.evaluator
import lm_eval.tasks
import pytest
from lm_eval.api.registry import metric_registry
from lm_eval.api.task import ConfigurableTask
from support.lm_eval import DOCUMENTS, ScoredBigramLM, config

from xent_metrics import list_metrics
from xent_metrics.errors import MissingExtraError
from xent_metrics.hosts.lm_eval import XentTask
from xent_metrics.hosts.lm_eval.upstream import EMITTED, as_command, configure_tasks, record_provenance
from xent_metrics.plugins import provenance


@pytest.mark.parametrize("output_type", sorted(EMITTED))
def test_lm_eval_emits_what_we_think(output_type):
    documents = DOCUMENTS[output_type]
    names = sorted(name for name in metric_registry if name != "bypass")
    task = ConfigurableTask(
        config=config(output_type, documents, [{"metric": name, "aggregation": "mean"} for name in names])
    )
    results = [(-1.0, True)] * 2 * len(documents[0].get("choices", [])) or [(-1.0, True)]
    assert (
        set(task.process_results(documents[0], [-1.0] if "rolling" in output_type else results)) == EMITTED[output_type]
    )


def test_our_names_are_not_in_lm_evals_registry():
    ours = set(list_metrics()) - set().union(*EMITTED.values())
    assert ours
    assert not ours & set(metric_registry)


def test_a_task_manager_without_the_factory_that_we_read_is_refused():
    """Otherwise metrics would be added to no task, without a word."""
    manager = lm_eval.tasks.TaskManager(include_defaults=False)
    del manager._factory
    with pytest.raises(MissingExtraError, match=r"TaskManager\._factory.*Install lm_eval==0\.4\.13"):
        configure_tasks(manager, lambda name, config: config)


def test_results_say_where_they_come_from_once(monkeypatch):
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda storage: storage.update(lm_eval_version="1"))
    record_provenance("ours", lambda: {"version": "0"})
    record_provenance("theirs", lambda: {"version": "2"})
    found: dict = {}
    lm_eval.evaluator.add_env_info(found)
    assert found == {"lm_eval_version": "1", "theirs": {"version": "2"}}


def test_an_evaluation_with_a_task_of_ours_says_our_version_and_plugins(monkeypatch):
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "a machine")  # takes seconds
    task = XentTask(config("loglikelihood_rolling", DOCUMENTS["loglikelihood_rolling"], [{"metric": "bits_per_byte"}]))
    found = lm_eval.simple_evaluate(ScoredBigramLM(), tasks=[task], bootstrap_iters=0, log_samples=False)
    assert found["xent_metrics"] == provenance()
    assert "focal" in [plugin["name"] for plugin in found["xent_metrics"]["plugins"]]
    assert found["lm_eval_version"]


def test_what_the_command_reads_is_put_back():
    before = sys.argv, lm_eval.tasks.TaskManager
    with contextlib.suppress(KeyError), as_command(["run", "--tasks", "t"], dict):
        assert (sys.argv, lm_eval.tasks.TaskManager) == (["lm-eval", "run", "--tasks", "t"], dict)
        raise KeyError
    assert (sys.argv, lm_eval.tasks.TaskManager) == before
