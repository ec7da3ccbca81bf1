"""XentTaskManager: lm-eval's task manager, with our task folders and metrics added to every task.

manager = XentTaskManager(entries=[{"metric": "bits_per_byte"}])
lm_eval.simple_evaluate("xent-hf", tasks=["wikitext"], task_manager=manager, …)

`xent lm-eval` and Lightning's `LMEvalCallback` use it; `upstream.configure_tasks` says how it reaches lm-eval's factory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.api.group import Group
from lm_eval.config.group import AggMetricConfig
from lm_eval.tasks import TaskManager

from xent_metrics.errors import InvalidInputError, MetricOptionError
from xent_metrics.hosts.lm_eval.metric_list import ADDED, ONLY
from xent_metrics.hosts.lm_eval.task import XentTask
from xent_metrics.hosts.lm_eval.upstream import METRICS, configure_tasks
from xent_metrics.plugins import list_metrics
from xent_metrics.task_folders import task_folders

__all__ = ["XentTaskManager", "check_metrics_are_lm_evals"]

log = logging.getLogger(__name__)

_ADD_CLASS = "Add `class: !function xent_metrics.hosts.lm_eval.XentTask` to its YAML"


class XentTaskManager(TaskManager):  # type: ignore[misc]  # lm-eval is untyped
    """lm-eval's task manager, which searches our task folder and every plugin's before the user's own.

    Args:
        args: lm-eval's own.
        include_path: folders of the user's own tasks. Their tasks replace ours of the same name.
        entries: entries of a `metric_list` to add to every task. A YAML task is then built as an `XentTask`.
        only: leave lm-eval's own metrics out of every task. Nothing is then generated.
        kwargs: lm-eval's own.
    """

    def __init__(
        self,
        *args: Any,
        include_path: Any = None,
        entries: Sequence[dict[str, Any]] = (),
        only: bool = False,
        **kwargs: Any,
    ) -> None:
        given = include_path if isinstance(include_path, list | tuple) else [include_path] if include_path else []
        user = [Path(path) for path in given]
        known = {path.resolve() for path in user}
        ours = [folder for folder in task_folders() if folder.resolve() not in known]
        super().__init__(
            *args, include_path=[*ours, *user], **kwargs
        )  # a task of a later folder replaces an earlier one
        self._added, self._only = list(entries), only
        configure_tasks(self, self._configure)

    def match_tasks(self, task_list: list[str]) -> list[str]:
        """Match names and patterns as lm-eval does; a name that is neither a task's nor a folder's raises."""
        self._check_names(name for name in task_list if not set(name) & set("*?["))
        return list(super().match_tasks(task_list))

    def _check_names(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.all_tasks and not Path(name).exists():
                near = " or ".join(map(repr, get_close_matches(name, self.all_tasks)))
                raise InvalidInputError(
                    f"no task, group or tag is called {name!r}.{f' Did you mean {near}?' if near else ''} `xent tasks` lists "
                    "those of xent-metrics, `xent lm-eval ls tasks` all; --include_path adds a folder of your own"
                )

    def load(self, task_list: Any) -> Any:
        """Load tasks as lm-eval does, and make sure that each of them has the added metrics."""
        given = task_list if isinstance(task_list, list | tuple) else [task_list]
        self._check_names(name for name in given if isinstance(name, str))
        loaded = super().load(task_list)
        for name, task in loaded["tasks"].items():
            if (self._added or self._only) and not isinstance(task, XentTask):
                raise InvalidInputError(
                    f"--xent_metrics can't be added to {name}, which is defined inside its group. Name the group's other "
                    "tasks instead of the group"
                )
        for group in loaded.get("groups", {}).values():
            self._add_to(group)
        return loaded

    def _add_to(self, group: Group) -> None:
        """Add the metrics to those that the group aggregates, if it aggregates any, weighted as its first is."""
        listed = group.aggregate_metric_list or []
        if not listed:
            return
        names = {entry.metric for entry in listed}
        added = [_name(entry) for entry in self._added if _name(entry) not in names]
        if self._only:
            left = {name for task in group.get_all_tasks() for name in task.aggregation()}
            listed = [entry for entry in listed if entry.metric in left]
        weighted = group.aggregate_metric_list[0].weight_by_size
        group.aggregate_metric_list = [*listed, *(AggMetricConfig(name, weight_by_size=weighted) for name in added)]

    def _configure(self, task: str, config: dict[str, Any]) -> dict[str, Any]:
        if self._added or self._only:
            return _with_metrics(task, config, deepcopy(self._added)) | {ONLY: self._only}
        check_metrics_are_lm_evals(task, config, is_lm_evals=self._is_lm_evals(task))
        return config

    def _is_lm_evals(self, task: str) -> bool:
        """True for a task that comes with lm-eval."""
        entry = self.task_index.get(task)
        path = None if entry is None else entry.yaml_path
        return path is not None and Path(lm_eval.tasks.__file__).parent in path.parents


def _with_metrics(task: str, config: dict[str, Any], added: list[dict[str, Any]]) -> dict[str, Any]:
    """The configuration of a task with our metrics besides its own."""
    made_by = config.get("class", XentTask)
    if not (isinstance(made_by, type) and issubclass(made_by, XentTask)):
        raise InvalidInputError(
            f"--xent_metrics can't be added to {task}, which is written in Python ({made_by}) rather than in YAML"
        )
    if "class" not in config:  # lm-eval's task: its metric_list stays lm-eval's
        return config | {"class": XentTask, ADDED: added}
    names = {_name(entry) for entry in added}
    own = [entry for entry in config.get("metric_list") or [] if _name(entry) not in names]
    return config | {"metric_list": [*own, *added]}


def check_metrics_are_lm_evals(task: str, config: dict[str, Any], *, is_lm_evals: bool) -> None:
    """Raise if a task of lm-eval's own class lists a metric that only xent-metrics has; warn of one that both have.

    A task that comes with lm-eval means lm-eval's metric.
    """
    listed = config.get("metric_list") if "class" not in config else None
    for entry in listed if isinstance(listed, list) else []:
        if not isinstance(entry, dict) or "aggregation" in entry:
            continue
        name = entry.get("metric")
        if not isinstance(name, str) or name not in list_metrics():
            continue
        if name not in METRICS:
            raise MetricOptionError(
                f"task {task}: {name} is a metric of xent-metrics, but the task is built by lm-eval's own class. {_ADD_CLASS}"
            )
        if not is_lm_evals:
            log.warning("task %s: %s is lm-eval's own metric. For that of xent-metrics: %s", task, name, _ADD_CLASS)


def _name(entry: dict[str, Any]) -> Any:
    return entry.get("name", entry.get("metric"))
