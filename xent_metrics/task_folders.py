"""Folders of lm-eval task YAMLs: the built-in `task_configs` and those of plugins, and the tasks in them.

The leading comment of a YAML is the description of its task.
"""

from __future__ import annotations

import itertools
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xent_metrics.errors import MissingExtraError, PluginError

__all__ = ["TaskConfig", "list_tasks", "task_configs_folder", "task_folders"]

#: Values of `dataset_path` that name a builder for local files.
_LOCAL_BUILDERS = {"arrow", "csv", "json", "pandas", "parquet", "text"}

_REPR = reprlib.Repr()
_REPR.maxlevel = 2


@dataclass(frozen=True)
class TaskConfig:
    """A task as its YAML describes it, or the error that kept the YAML from being read."""

    name: str
    description: str
    output_type: str
    metrics: list[str]
    needs_network: bool
    path: Path
    error: str | None = None


def task_configs_folder() -> Path:
    """The built-in folder: inside the package in a wheel, beside it in a source tree."""
    package = Path(__file__).parent
    for folder in (package / "task_configs", package.parent / "task_configs"):
        if folder.is_dir():
            return folder
    raise PluginError(f"no folder task_configs in {package} or {package.parent}; reinstall xent-metrics")


def task_folders() -> list[Path]:
    """The built-in folder, then those of every loaded plugin."""
    from xent_metrics.plugins import plugins

    return [task_configs_folder(), *(folder for plugin in plugins().plugins for folder in plugin.task_configs)]


def list_tasks(folder: Path) -> list[TaskConfig]:
    """The tasks of a folder, sorted by name. A file that can't be read is listed under its own name, with its error.

    Groups are left out, and so are files whose names begin with `_`: other YAMLs include them.
    """
    found = (_describe(path) for path in folder.rglob("*.yaml") if not path.name.startswith("_"))
    return sorted((task for task in found if task is not None), key=lambda task: task.name)


def _describe(path: Path) -> TaskConfig | None:
    try:
        config = _load(path)
    except PluginError as error:
        return TaskConfig(path.stem, "", "", [], needs_network=False, path=path, error=str(error))
    if not isinstance(config.get("task"), str):
        return None  # a group
    return TaskConfig(
        name=config["task"],
        description=_leading_comment(path.read_text(encoding="utf-8")),
        output_type=_short(config.get("output_type", "generate_until")),
        metrics=[_short(entry.get("name", entry.get("metric"))) for entry in config["metric_list"]],
        needs_network="custom_dataset" not in config and _short(config.get("dataset_path")) not in _LOCAL_BUILDERS,
        path=path,
    )


def _short(value: Any) -> str:
    """A text as it is, and anything else in some characters: a few lines of YAML can stand for more than fits in memory."""
    return value if isinstance(value, str) else _REPR.repr(value)


def _leading_comment(text: str) -> str:
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.lstrip("# ").rstrip() for line in lines)


def _load(path: Path, including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML and its includes, with `metric_list` a list of entries.

    Raises:
        PluginError: the file can't be read, isn't YAML, isn't a task, or includes itself; the message has its path.
    """
    config = _read(path)
    if path.resolve() in including:
        raise PluginError(f"{path} includes itself, through {' and '.join(each.name for each in including)}")
    included: dict[str, Any] = {}
    for name in _names(config.pop("include", None), path):
        included |= _load(path.parent / name, (*including, path.resolve()))
    whole = {"metric_list": []} | included | config
    listed = whole["metric_list"] = whole["metric_list"] or []
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise PluginError(
            f"{path}: expected metric_list to be a list of entries, `- metric: name`; got {_short(listed)}"
        )
    return whole


def _read(path: Path) -> dict[str, Any]:
    """Parse one file. `!function` gives the function's name; nothing is imported."""
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("listing tasks needs PyYAML: pip install 'xent-metrics[lm-eval]'") from error

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Knows lm-eval's `!function`."""

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader) or {}
    except (OSError, RecursionError, ValueError, yaml.YAMLError) as error:
        raise PluginError(f"{path} can't be read: {error}") from error
    if not isinstance(config, dict):
        raise PluginError(f"{path} is not an lm-eval task: expected keys with values; got {type(config).__name__}")
    return config


def _names(include: Any, path: Path) -> list[str]:
    names = [include] if isinstance(include, str) else include or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PluginError(f"{path}: expected include to be a file or a list of files; got {_short(include)}")
    return names
