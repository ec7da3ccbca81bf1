"""The undocumented parts of lm-eval that the task side uses, as read in lm-eval 0.4.13.

lm-eval has no hook to change a task's configuration, to give its command another task manager, or to ask which metrics an
output type emits. The private names for those are used here and nowhere else; each docstring says what to
look for when a later lm-eval moves them. The private names that models use are in `models/`.

Three habits of lm-eval's evaluator are relied on as well. Tests notice when they change:

- `process_results` may emit ``<name>_stderr`` after ``<name>``, and that value replaces the ``N/A`` (test_task.py);
- an aggregation may shorten the list that it gets; the number of samples is counted afterwards (test_empty_ranks.py);
- the standard error of one of lm-eval's metrics is looked up by its aggregation, with ``==`` (test_empty_ranks.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval.api.metrics  # fills the registries of metrics and aggregations
import lm_eval.evaluator
import lm_eval.tasks
from lm_eval.api.group import Group
from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY, aggregation_registry, metric_agg_registry, metric_registry
from lm_eval.config.task import TaskConfig
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry, Kind, TaskIndex

from xent_metrics.errors import MissingExtraError

__all__ = [
    "AGGREGATIONS",
    "EMITTED",
    "METRICS",
    "Configure",
    "aggregate_groups",
    "as_command",
    "configure_tasks",
    "default_aggregation",
    "default_metrics",
    "filter_names",
    "index_tasks",
    "known_keys",
    "load_configuration",
    "record_provenance",
]

#: What lm-eval's `process_results` can emit, by output type. It drops every other metric without a word.
#: Read in lm-eval 0.4.13, `ConfigurableTask.process_results`; test_upstream.py compares.
EMITTED = {
    "loglikelihood": {"acc", "perplexity"},
    "loglikelihood_rolling": {"bits_per_byte", "byte_perplexity", "word_perplexity"},
    "multiple_choice": {
        "acc", "acc_bytes", "acc_mutual_info", "acc_norm", "brier_score", "exact_match", "f1", "likelihood", "mcc",
    },
}  # fmt: skip
#: The names of all metrics and aggregations that lm-eval has registered.
METRICS: Collection[str] = metric_registry
AGGREGATIONS: Collection[str] = aggregation_registry

#: Takes a task's name and its whole configuration, and returns the configuration to build the task from.
Configure = Callable[[str, dict[str, Any]], dict[str, Any]]


def default_metrics(output_type: str) -> list[str]:
    """The metrics that lm-eval computes for a task without a `metric_list`."""
    return list(DEFAULT_METRIC_REGISTRY.get(output_type, []))


def default_aggregation(metric: str) -> str | None:
    """The name of the aggregation of a metric whose entry names none; without one, lm-eval can't build the task."""
    if metric not in metric_agg_registry:
        return None
    function = metric_agg_registry.get(metric)
    return next((name for name in AGGREGATIONS if aggregation_registry.get(name) == function), None)


def known_keys() -> set[str]:
    """The keys that a task's configuration may have, with those that lm-eval's loader takes out of it.

    `TaskFactory._build_task` passes the rest to `TaskConfig`, which raises on any other, as read in lm-eval 0.4.13.
    """
    return {field.name for field in fields(TaskConfig)} | {"tag", "group", "task_list", "class", "include"}


def index_tasks(folders: Sequence[Path]) -> dict[str, Entry]:
    """The tasks, groups and tags of folders by name: `TaskIndex.build`, read in lm-eval 0.4.13 (lm_eval/tasks/_index.py)."""
    found: dict[str, Entry] = TaskIndex.build(folders)
    return found


def load_configuration(source: Path | Entry) -> dict[str, Any]:
    """The configuration of a YAML, or of an entry of the index, with what it includes and its functions, but no data.

    `TaskFactory._load_full_config`, read in lm-eval 0.4.13 (lm_eval/tasks/_factory.py). It imports the Python files that
    the YAML names, so it may raise anything.
    """
    entry = source if isinstance(source, Entry) else Entry(source.stem, Kind.TASK, source.expanduser().resolve())
    found: dict[str, Any] = TaskFactory()._load_full_config(entry)
    return found


def filter_names(task: Any) -> list[str]:
    """The names of a task's filters: `ConfigurableTask._filters`, read in lm-eval 0.4.13."""
    return [each.name for each in task._filters]


class _ConfiguringFactory(TaskFactory):  # type: ignore[misc]  # lm-eval is untyped
    """lm-eval's factory of tasks, which passes every task's configuration through a function before building it."""

    def __init__(self, configure: Configure, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._configure = configure

    def _load_full_config(self, entry: Any, overrides: Any = None) -> dict[str, Any]:
        """The YAML with its overrides and metadata; ``entry.kind`` says whether it is a task's or a group's.

        Overrides `TaskFactory._load_full_config`, read in lm-eval 0.4.13 (lm_eval/tasks/_factory.py). If it moves,
        override the method that merges the YAML with its overrides just before a task is built.
        """
        config: dict[str, Any] = super()._load_full_config(entry, overrides)
        return config if entry.kind is Kind.GROUP else self._configure(entry.name, config)


def configure_tasks(manager: lm_eval.tasks.TaskManager, configure: Configure) -> None:
    """Make a task manager pass every task's configuration through `configure`.

    Replaces `TaskManager._factory`, read in lm-eval 0.4.13 (lm_eval/tasks/manager.py). If it moves, replace whatever
    object has a `build(entry, …)` that turns an entry of the index into a task. Inline tasks of a group don't come
    through it in that version: `XentTaskManager.load` finds them.

    Raises:
        MissingExtraError: this lm-eval has no such factory.
    """
    if not isinstance(getattr(manager, "_factory", None), TaskFactory):
        raise MissingExtraError(
            f"xent-metrics builds tasks by TaskManager._factory, as lm-eval 0.4.13 has it; lm-eval {version('lm_eval')} "
            "doesn't have it. Install lm_eval==0.4.13"
        )
    manager._factory = _ConfiguringFactory(configure, meta=manager.metadata)


def aggregate_groups(exact: Callable[[Group, dict[str, Any], Mapping[str, Any]], dict[str, Any]]) -> None:
    """Let `exact` replace values in the results of every group, under any command.

    lm-eval makes its groups itself, and has no hook for what they compute. So `Group.aggregate`, read in lm-eval 0.4.13
    (lm_eval/api/group.py), is wrapped, once in a process. If it moves, wrap whatever turns the results of tasks, by
    name, into those of a group.

    Args:
        exact: takes the group, its results as lm-eval has them, and the results of all tasks.
    """
    lm_evals = getattr(Group.aggregate, "__wrapped__", Group.aggregate)

    @wraps(lm_evals)
    def aggregate(group: Group, task_metrics: dict[str, Any]) -> dict[str, Any]:
        return exact(group, lm_evals(group, task_metrics), task_metrics)

    Group.aggregate = aggregate


def record_provenance(name: str, provenance: Callable[[], Mapping[str, Any]]) -> None:
    """Let every results.json say `provenance` under `name`, beside lm-eval's own version, under any command.

    `lm_eval.evaluator.add_env_info`, read in lm-eval 0.4.13 (lm_eval/evaluator.py), which adds the versions to the results,
    is wrapped, once in a process. If it moves, wrap whatever does.
    """
    lm_evals = getattr(lm_eval.evaluator.add_env_info, "__wrapped__", lm_eval.evaluator.add_env_info)

    @wraps(lm_evals)
    def add_env_info(storage: dict[str, Any]) -> None:
        lm_evals(storage)
        storage[name] = dict(provenance())

    lm_eval.evaluator.add_env_info = add_env_info


@contextmanager
def as_command(arguments: Sequence[str], task_manager: Any) -> Iterator[Callable[[], None]]:
    """lm-eval's command, to be called, with `arguments` and our task manager.

    The command looks up `lm_eval.tasks.TaskManager` each time it makes one, and reads `sys.argv`, as read in lm-eval
    0.4.13 (lm_eval/_cli). Both are put back afterwards. If the command comes to bind the name when it is imported,
    replace it in the module that binds it.
    """
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv, lm_eval.tasks.TaskManager
    sys.argv, lm_eval.tasks.TaskManager = ["lm-eval", *arguments], task_manager
    try:
        yield cli_evaluate
    finally:
        sys.argv, lm_eval.tasks.TaskManager = before
