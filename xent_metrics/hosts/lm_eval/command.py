"""`xent lm-eval …`: lm-eval's own command with our models, all task folders and `--xent_metrics` known to it.

    xent lm-eval run --model xent-hf --model_args pretrained=… --tasks wikitext,arc_easy \\
        --xent_metrics "bits_per_byte,cross_entropy:unit=bits;name=bits_per_token"

lm-eval makes its TaskManager in one place, under the name `lm_eval.tasks.TaskManager`; while its command runs, that is
ours: it looks into more folders and, with `--xent_metrics`, makes every task that it loads an `XentTask`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval.models  # lm-eval lists its own models only while its registry is empty
import lm_eval.tasks
import yaml  # type: ignore[import-untyped]
from lm_eval.api.registry import metric_registry, model_registry
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Kind

from xent_metrics.errors import InvalidInputError, MetricOptionError
from xent_metrics.hosts.lm_eval.metric_list import ADDED, OWN_KEYS
from xent_metrics.hosts.lm_eval.task import XentTask
from xent_metrics.plugins import get_metric, list_metrics
from xent_metrics.task_folders import task_folders

__all__ = ["XentTaskManager", "parse_metrics", "register_models", "run"]

_MODELS = {
    "xent-hf": "xent_metrics.hosts.lm_eval.models.hf_lm:XentHFLM",
    "xent-torch": "xent_metrics.hosts.lm_eval.models.torch_lm:TorchLM",
}


def run(arguments: Sequence[str], metrics: str | None = None) -> None:
    """Run lm-eval's command with `arguments`; `metrics`, as in ``a,b:option=value;option=value``, go on every task."""
    from lm_eval.__main__ import cli_evaluate

    entries = parse_metrics(metrics)
    register_models()
    with _as_the_command(["lm-eval", *arguments], partial(XentTaskManager, entries=entries)):
        cli_evaluate()


def register_models() -> None:
    """Make our models known to lm-eval by name; they are imported when one is asked for."""
    for name, target in _MODELS.items():
        if name not in model_registry:  # a later lm-eval finds them by their entry points
            model_registry.register(name, target=target)


def parse_metrics(text: str | None) -> list[dict[str, Any]]:
    """``a,b:unit=bits;over=choices`` as entries of a metric_list; names and options are checked.

    >>> parse_metrics("bits_per_byte,expected_calibration_error:num_bins=10;over=choices")
    [{'metric': 'bits_per_byte'}, {'metric': 'expected_calibration_error', 'num_bins': 10, 'over': 'choices'}]
    """
    return [_parse_metric(part.strip()) for part in (text or "").split(",") if part.strip()]


def _parse_metric(text: str) -> dict[str, Any]:
    name, _, given = text.partition(":")
    entry: dict[str, Any] = {"metric": name.strip()}
    for option in filter(None, given.split(";")):
        key, equals, value = option.partition("=")
        if not equals:
            raise MetricOptionError(f"--xent_metrics {text}: expected name:option=value;option=value; got {option!r}")
        entry[key.strip()] = yaml.safe_load(value)
    get_metric(entry["metric"], **{key: value for key, value in entry.items() if key not in OWN_KEYS})
    return entry


class XentTaskManager(lm_eval.tasks.TaskManager):  # type: ignore[misc]  # lm-eval is untyped
    """lm-eval's, with our folder and every plugin's before the user's own, and `entries` added to every task."""

    def __init__(
        self, *args: Any, include_path: Any = None, entries: Sequence[dict[str, Any]] = (), **kwargs: Any
    ) -> None:
        given = include_path if isinstance(include_path, list | tuple) else [include_path] if include_path else []
        user = [Path(path) for path in given]
        known = {path.resolve() for path in user}
        ours = [folder for folder in task_folders() if folder.resolve() not in known]
        super().__init__(*args, include_path=[*ours, *user], **kwargs)  # a later folder's task goes before an earlier's
        self._entries = list(entries)
        self._factory = _XentTaskFactory(self._entries, meta=self.metadata)

    def load(self, task_list: Any) -> Any:
        """lm-eval's own; every task must have taken the metrics."""
        loaded = super().load(task_list)
        for name, task in loaded["tasks"].items():
            if self._entries and not isinstance(task, XentTask):
                raise InvalidInputError(
                    f"--xent_metrics can't be put on {name}, which its group makes itself; name the group's other tasks"
                )
        return loaded


class _XentTaskFactory(TaskFactory):  # type: ignore[misc]
    """Builds every YAML task as an `XentTask` with `entries` added, if there are any."""

    def __init__(self, entries: Sequence[dict[str, Any]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._entries = entries

    def _load_full_config(self, entry: Any, overrides: Any = None) -> dict[str, Any]:
        config: dict[str, Any] = super()._load_full_config(entry, overrides)
        if entry.kind is Kind.GROUP:
            return config
        if not self._entries:
            _check_whose(entry.name, config)
            return config
        made_by = config.get("class", XentTask)
        if not (isinstance(made_by, type) and issubclass(made_by, XentTask)):
            raise InvalidInputError(
                f"--xent_metrics can't be put on {entry.name}, which is written in Python ({made_by}), not a YAML task"
            )
        added = deepcopy(self._entries)
        if "class" in config:  # an XentTask already: our names are ours in its own list too
            names = {_name(each) for each in added}
            own = [each for each in config.get("metric_list") or [] if _name(each) not in names]
            return config | {"metric_list": [*own, *added]}
        return config | {"class": XentTask, ADDED: added}


def _check_whose(task: str, config: dict[str, Any]) -> None:
    """Raise where lm-eval's own task would be given a metric that lm-eval doesn't have and we do."""
    listed = config.get("metric_list") if "class" not in config else None
    for entry in listed if isinstance(listed, list) else []:
        name = entry.get("metric") if isinstance(entry, dict) else None
        if (
            isinstance(name, str)
            and name in list_metrics()
            and name not in metric_registry
            and "aggregation" not in entry
        ):
            raise MetricOptionError(
                f"task {task}: {name} is a metric of xent-metrics, and the task is lm-eval's own. Write "
                "`class: !function xent_metrics.hosts.lm_eval.XentTask` into its YAML"
            )


def _name(entry: dict[str, Any]) -> Any:
    return entry.get("name", entry.get("metric"))


@contextmanager
def _as_the_command(argv: list[str], task_manager: Any) -> Iterator[None]:
    """What lm-eval's command reads, set for the time that it runs."""
    before = sys.argv, lm_eval.tasks.TaskManager
    sys.argv, lm_eval.tasks.TaskManager = argv, task_manager
    try:
        yield
    finally:
        sys.argv, lm_eval.tasks.TaskManager = before
