"""Tasks of lm-eval by YAML or by name, read without their data, and their groups.

A YAML of a group is checked with those of its tasks that lie in its folder. By name, all tasks of a group or tag are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval import tasks as lm_eval_tasks

from xent_metrics.doctor.findings import Finding
from xent_metrics.doctor.task_metrics import check_task
from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval.metric_entry import GENERATIVE, did_you_mean
from xent_metrics.hosts.lm_eval.upstream import default_aggregation, default_metrics, index_tasks, load_configuration
from xent_metrics.task_folders import task_folders

__all__ = ["Configurations", "check_group", "check_names", "check_yaml"]

#: Aggregations of lm-eval that are no means over documents: the mean of two tasks' values isn't that of all their documents.
_NO_MEANS = {
    "bits_per_byte", "bleu", "chrf", "chrf++", "f1", "matthews_corrcoef", "perplexity", "ter", "weighted_perplexity",
}  # fmt: skip


_MOST_VALUES = 100_000  # of a configuration


class Configurations(NamedTuple):
    """The tasks, groups and tags of some folders, by name."""

    entries: Mapping[str, Any]

    @classmethod
    def of(cls, folders: Sequence[Path]) -> Configurations:
        """Index the YAMLs of folders; a later folder's task replaces an earlier one's."""
        return cls(index_tasks(folders))

    def members(self, config: Mapping[str, Any], seen: frozenset[str] = frozenset()) -> Iterator[tuple[str, Any]]:
        """The name and configuration of each task in a group, its subgroups and tags; None for a task that isn't here."""
        listed = config.get("task")
        for item in [listed] if isinstance(listed, str) else listed or ():
            own = item if isinstance(item, Mapping) else {}
            name = str(own.get("group") or own.get("task") or item)
            if name in self.entries and name not in seen:
                yield from self._named(name, own, seen | {name})
            elif own.get("group"):  # defined where it is listed
                yield from self.members(own, seen)
            elif name not in seen:
                yield name, dict(own) if len(own) > 1 else None

    def _named(self, name: str, overrides: Mapping[str, Any], seen: frozenset[str]) -> Iterator[tuple[str, Any]]:
        entry = self.entries[name]
        if entry.kind.name == "TAG":
            yield from self.members({"task": sorted(entry.tags)}, seen)
        elif entry.kind.name == "GROUP":
            yield from self.members(entry.cfg or {}, seen)
        else:
            yield name, {**(entry.cfg or {}), **overrides}


def check_yaml(path: Path, model: str | None = None) -> list[Finding]:
    """Check the YAML of a task or group.

    Args:
        path: the YAML.
        model: the lm-eval model that will run, as in `--model`.
    """
    place = str(path)
    loaded = _loaded(path, place)
    if isinstance(loaded, Finding):
        return [loaded]
    if "class" not in loaded and isinstance(loaded.get("group"), str) and not isinstance(loaded.get("task"), str):
        return check_group(loaded, place, Configurations.of([path.parent]))
    if not isinstance(loaded.get("task"), str):
        return [Finding("not-a-task", place, "names no task or group; other YAMLs may include it", "note")]
    return check_task(loaded, place, model)


def check_names(names: Sequence[str], model: str | None = None) -> list[Finding]:
    """Check tasks by name, and all tasks of groups and tags.

    Raises:
        InvalidInputError: lm-eval, xent-metrics and its plugins have no task of the name.
    """
    known = Configurations.of([Path(lm_eval_tasks.__file__).parent, *task_folders()])
    found: dict[str, list[Finding]] = {}
    for name in names:
        if name not in known.entries:
            raise InvalidInputError(
                f"no task, group or tag {name!r}, and no such file.{did_you_mean(name, known.entries)} "
                "`lm_eval ls tasks` lists all"
            )
        config = known.entries[name].cfg
        if known.entries[name].kind.name == "GROUP":
            found[name] = check_group(config, name, known)
        for member, _ in known.members({"task": [name]}):
            if member not in found:
                found[member] = _check_named(member, known, model)
    return [finding for each in found.values() for finding in each]


def _check_named(name: str, known: Configurations, model: str | None) -> list[Finding]:
    if name not in known.entries:
        return [
            Finding(
                "unknown-task",
                name,
                "a group lists it, but no YAML defines it. Correct its name in the group",
                "warning",
            )
        ]
    loaded = _loaded(known.entries[name], name)
    return [loaded] if isinstance(loaded, Finding) else check_task(loaded, name, model)


def _loaded(source: Any, place: str) -> dict[str, Any] | Finding:
    try:
        loaded = load_configuration(source)
    except (Exception, SystemExit) as error:  # its Python files may do anything when they are imported
        why = " ".join(f"{type(error).__name__}: {error}".split())
        return Finding(
            "not-loadable", place, f"lm-eval can't load it: {why:.300}. Install or mend what this names", "error"
        )
    if _size(loaded, {}) > _MOST_VALUES:
        why = f"its aliases stand for more than {_MOST_VALUES:,} values, or for themselves. Write out what is meant"
        return Finding("not-loadable", place, why, "error")
    return loaded


def _size(value: Any, sizes: dict[int, float]) -> float:
    """How many values a configuration stands for, with each alias of a YAML written out; infinite if one holds itself.

    >>> shared = ["x"] * 10
    >>> _size({"a": shared, "b": shared}, {})
    25
    """
    if not isinstance(value, Mapping | list | tuple | set):
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = math.inf  # until it is known
        parts = [*value, *value.values()] if isinstance(value, Mapping) else value
        sizes[id(value)] = 1 + sum(_size(part, sizes) for part in parts)
    return sizes[id(value)]


def check_group(config: Mapping[str, Any], place: str, known: Configurations) -> list[Finding]:
    """Check what a group aggregates against what its tasks compute.

    Args:
        config: the group's.
        place: for the findings.
        known: where its tasks are looked up; what isn't there isn't checked.
    """
    listed = config.get("aggregate_metric_list") or []
    entries = [entry for entry in ([listed] if isinstance(listed, Mapping) else listed) if isinstance(entry, Mapping)]
    members = list(known.members(config)) if entries else []
    tasks = [_aggregations(member) for _, member in members if member is not None]
    return [
        finding for entry in entries for finding in _aggregated(entry, tasks, len(tasks) == len(members) > 0, place)
    ]


def _aggregated(
    entry: Mapping[str, Any], tasks: Sequence[Mapping[str, str | None] | None], complete: bool, place: str
) -> Iterator[Finding]:
    metric, known = str(entry.get("metric")), [task for task in tasks if task is not None]
    found = [task[metric] for task in known if metric in task]
    if complete and len(known) == len(tasks) and not found:
        names = ", ".join(sorted({name for task in known for name in task}))
        text = f"the group aggregates {metric}, which none of its tasks lists, so it has no value. Name one that they list: "
        text += names or "nothing so far"
        yield Finding("group-lacks-metric", place, text, "warning")
    no_means = sorted({str(name) for name in found if name in _NO_MEANS})
    if no_means and entry.get("weight_by_size", True):
        text = f"the group's {metric} is the mean of its tasks' values, which isn't that of all their documents: its tasks "
        text += (
            f"aggregate by {', '.join(no_means)}. Report the tasks, or a loss added by --xent_metrics, exact for groups"
        )
        yield Finding("mean-of-ratios", place, text, "warning")


def _aggregations(config: Mapping[str, Any]) -> dict[str, str | None] | None:
    """How a task aggregates each of its metrics, by name, None where by another function; None if it may emit others.

    Those that a task lists may not be those that it emits: if it is written in Python, has a `process_results`, or lists
    a function, which may return several values.
    """
    if _size(config, {}) > _MOST_VALUES:
        return None
    listed = config.get("metric_list")
    if listed is None:
        listed = [{"metric": name} for name in default_metrics(str(config.get("output_type", GENERATIVE)))]
    entries = [entry for entry in listed if isinstance(entry, Mapping)]
    names = [entry.get("metric") for entry in entries]
    if "class" in config or config.get("process_results") is not None or any(map(_is_function, names)):
        return None
    return {
        str(name): entry["aggregation"] if "aggregation" in entry else default_aggregation(str(name))
        for name, entry in zip(names, entries, strict=True)
    }


def _is_function(metric: Any) -> bool:
    """True for a function, or for the path that stands for one while functions aren't loaded."""
    return not isinstance(metric, str) or "/" in metric
