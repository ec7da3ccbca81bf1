"""What a run's results file says, without its samples: enough for all tables, and quick to read for hundreds of runs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from xent_metrics.analysis.results_file import load_results, reported_values, rescored_from
from xent_metrics.analysis.training import Training, training_of
from xent_metrics.view.links import slug

__all__ = ["Reported", "RunSummary", "TaskSummary", "read_summary"]


@dataclass(frozen=True)
class Reported:
    """A value and its standard error as the results say; the error is nan if they don't."""

    value: float
    error: float


@dataclass(frozen=True)
class TaskSummary:
    """A task or a group of tasks: its values by the metrics' names. `documents` is 0 if the results don't say."""

    name: str
    values: Mapping[str, Reported]
    documents: int
    is_group: bool
    subtasks: tuple[str, ...]


@dataclass(frozen=True)
class RunSummary:
    """One results file.

    `key` is its folder in the folder of runs, with the date if the folder holds several; `name` is the key without a folder
    that lm-eval named at random, as it does where the model's arguments have no name.
    """

    path: Path
    key: str
    name: str
    model: str
    date: str
    training: Training
    tasks: Mapping[str, TaskSummary]
    problems: tuple[str, ...]
    facts: Mapping[str, str]

    @cached_property
    def slug(self) -> str:
        """The run in names of pages."""
        return slug(self.key)


def read_summary(path: Path, key: str) -> RunSummary:
    """Read a results file.

    Raises:
        ComparisonError: it isn't readable, or not lm-eval's.
    """
    results = load_results(path)
    problems: list[str] = []
    tasks = {task.name: task for task in _tasks(results, problems)}
    date = re.search(r"\d{4}-\d\d-\d\dT[\d-]+", path.stem)
    name, model = _names(results, path, key)
    return RunSummary(
        path=path,
        key=key,
        name=name,
        model=model,
        date=_readable_date(date[0] if date else ""),
        training=training_of(name, results),
        tasks=tasks,
        problems=tuple(problems),
        facts=dict(_facts(results)),
    )


def _names(results: Mapping[str, Any], path: Path, key: str) -> tuple[str, str]:
    """The names of the run and of its model."""
    config = _part(results, "config")
    model = str(results.get("model_name") or path.parent.name)
    named_at_random = model == path.parent.name and config.get("model") and model not in str(config.get("model_args"))
    if not named_at_random:
        return key, model
    folder, _, date = key.partition(f"/{model}")
    return folder + date, str(config["model"])


def _readable_date(date: str) -> str:
    """``2026-11-29T04-05-06.123`` as ``2026-11-29 04:05``."""
    day, _, time = date.partition("T")
    return f"{day} {time[:5].replace('-', ':')}".strip()


def _tasks(results: Mapping[str, Any], problems: list[str]) -> Iterator[TaskSummary]:
    groups, subtasks, counts = (_part(results, key) for key in ("groups", "group_subtasks", "n-samples"))
    for name, found in {**groups, **results["results"]}.items():
        if not isinstance(found, dict):
            problems.append(f"task {name}: its results are {type(found).__name__}, not values by metric")
            continue
        values, errors = reported_values(found)
        if not values:
            problems.append(f"task {name}: no values; expected keys such as `acc,none`, with a metric and a filter")
        inside = subtasks.get(name) or () if name in groups else ()
        yield TaskSummary(
            name=name,
            values={metric: Reported(value, errors.get(metric, math.nan)) for metric, value in values.items()},
            documents=_count(counts.get(name)),
            is_group=name in groups,
            subtasks=tuple(map(str, inside)) if isinstance(inside, list | tuple) else (),
        )


def _count(said: Any) -> int:
    count = said.get("effective") if isinstance(said, dict) else None
    return count if isinstance(count, int) else 0


def _part(results: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = results.get(key)
    return part if isinstance(part, dict) else {}


def _facts(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How the run was made."""
    config = _part(results, "config")
    for key in ("model", "model_args", "limit", "batch_size"):
        if config.get(key) not in (None, ""):
            yield "lm-eval's model" if key == "model" else key.replace("_", " "), str(config[key])
    for key in ("lm_eval_version", "transformers_version"):
        if results.get(key):
            yield key.replace("_", " "), str(results[key])
    version = _part(results, "xent_metrics").get("version")
    if version:
        yield "xent-metrics version", str(version)
    if origin := rescored_from(results):
        yield "rescored from", f"{origin}, by xent rescore, without the model"
