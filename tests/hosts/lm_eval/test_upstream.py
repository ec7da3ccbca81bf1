"""lm-eval's own code, as we found it in the version that is installed."""

import contextlib
import sys

import lm_eval.tasks
import pytest
from lm_eval.api.registry import metric_registry
from lm_eval.api.task import ConfigurableTask
from support.lm_eval import DOCUMENTS, config

from xent_metrics import list_metrics
from xent_metrics.errors import MissingExtraError
from xent_metrics.hosts.lm_eval.upstream import EMITTED, as_command, configure_tasks


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


def test_what_the_command_reads_is_put_back():
    before = sys.argv, lm_eval.tasks.TaskManager
    with contextlib.suppress(KeyError), as_command(["run", "--tasks", "t"], dict):
        assert (sys.argv, lm_eval.tasks.TaskManager) == (["lm-eval", "run", "--tasks", "t"], dict)
        raise KeyError
    assert (sys.argv, lm_eval.tasks.TaskManager) == before
