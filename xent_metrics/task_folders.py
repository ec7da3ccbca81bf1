"""The folders of lm-eval task YAMLs: our own `task_configs` and those that plugins register, and what is in them.

The comment that a YAML begins with says what its task is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xent_metrics.errors import MissingExtraError, PluginError

__all__ = ["TaskConfig", "list_tasks", "task_configs_folder", "task_folders"]

#: `dataset_path` of the builders that read the user's own files.
_LOCAL_BUILDERS = {"arrow", "csv", "json", "pandas", "parquet", "text"}


@dataclass(frozen=True)
class TaskConfig:
    """What a YAML says of its task."""

    name: str
    description: str
    output_type: str
    metrics: list[str]
    needs_network: bool
    path: Path
    error: str | None = None


def task_configs_folder() -> Path:
    """Our own folder: in a wheel inside the package, in a source tree beside it."""
    package = Path(__file__).parent
    for folder in (package / "task_configs", package.parent / "task_configs"):
        if folder.is_dir():
            return folder
    raise PluginError(f"no folder task_configs in {package} or beside it; install xent-metrics again")


def task_folders() -> list[Path]:
    """Our own folder and those of every loaded plugin."""
    from xent_metrics.plugins import plugins

    return [task_configs_folder(), *(folder for plugin in plugins().plugins for folder in plugin.task_configs)]


def list_tasks(folder: Path) -> list[TaskConfig]:
    """The tasks of a folder, by name; files whose names begin with `_` are parts of others.

    A file that can't be read stands among them, under its own name and with its error.
    """
    found = (_described(path) for path in folder.rglob("*.yaml") if not path.name.startswith("_"))
    return sorted((task for task in found if task is not None), key=lambda task: task.name)


def _described(path: Path) -> TaskConfig | None:
    try:
        config = _load(path)
    except PluginError as error:
        return TaskConfig(path.stem, "", "", [], needs_network=False, path=path, error=str(error))
    if not isinstance(config.get("task"), str):
        return None  # a group
    return TaskConfig(
        name=config["task"],
        description=_leading_comment(path.read_text(encoding="utf-8")),
        output_type=str(config.get("output_type", "generate_until")),
        metrics=[str(entry.get("name", entry.get("metric"))) for entry in config["metric_list"]],
        needs_network="custom_dataset" not in config and config.get("dataset_path") not in _LOCAL_BUILDERS,
        path=path,
    )


def _leading_comment(text: str) -> str:
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.lstrip("# ").rstrip() for line in lines)


def _load(path: Path) -> dict[str, Any]:
    """A YAML with its includes, functions as their names: nothing is imported.

    Raises:
        PluginError: the file can't be read, isn't YAML or isn't a task's; with its path.
    """
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("listing tasks needs PyYAML: pip install 'xent-metrics[lm-eval]'") from error

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Knows lm-eval's `!function`."""

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise PluginError(f"{path} can't be read: {error}") from error
    if not isinstance(config, dict):
        raise PluginError(f"{path} is no lm-eval task: expected keys with values; got {type(config).__name__}")
    included: dict[str, Any] = {}
    for name in _names(config.pop("include", None)):
        included |= _load(path.parent / name)
    whole = {"metric_list": []} | included | config
    listed = whole["metric_list"] = whole["metric_list"] or []
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise PluginError(f"{path}: metric_list is a list of entries, `- metric: name`; got {listed!r}")
    return whole


def _names(include: str | list[str] | None) -> Iterator[str]:
    if include is not None:
        yield from [include] if isinstance(include, str) else include
