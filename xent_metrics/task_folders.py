"""The folders of lm-eval task YAMLs: our own `task_configs` and those that plugins register, and what is in them.

The comment that a YAML begins with says what its task is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import MissingExtraError, PluginError

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


def task_configs_folder() -> Path:
    """Our own folder: in a wheel inside the package, in a source tree beside it."""
    package = Path(__file__).parent
    for folder in (package / "task_configs", package.parent / "task_configs"):
        if folder.is_dir():
            return folder
    raise PluginError(f"no folder task_configs in {package} or beside it; install xent-metrics again")


def task_folders() -> list[Path]:
    """Our own folder and those of every loaded plugin."""
    from .plugins import plugins

    return [task_configs_folder(), *(folder for plugin in plugins().plugins for folder in plugin.task_configs)]


def list_tasks(folder: Path) -> list[TaskConfig]:
    """The tasks of a folder, by name; files whose names begin with `_` are parts of others."""
    found = (_described(path) for path in folder.rglob("*.yaml") if not path.name.startswith("_"))
    return sorted((task for task in found if task is not None), key=lambda task: task.name)


def _described(path: Path) -> TaskConfig | None:
    config = _load(path)
    if not isinstance(config.get("task"), str):
        return None  # a group
    return TaskConfig(
        name=config["task"],
        description=_leading_comment(path.read_text(encoding="utf-8")),
        output_type=str(config.get("output_type", "generate_until")),
        metrics=[str(entry.get("name", entry.get("metric"))) for entry in config.get("metric_list") or []],
        needs_network="custom_dataset" not in config and config.get("dataset_path") not in _LOCAL_BUILDERS,
        path=path,
    )


def _leading_comment(text: str) -> str:
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.lstrip("# ").rstrip() for line in lines)


def _load(path: Path) -> dict[str, Any]:
    """A YAML with its includes, functions as their names: nothing is imported."""
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("listing tasks needs PyYAML: pip install 'xent-metrics[lm-eval]'") from error

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Knows lm-eval's `!function`."""

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    config: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader) or {}
    included: dict[str, Any] = {}
    for name in _names(config.pop("include", None)):
        included |= _load(path.parent / name)
    return included | config


def _names(include: str | list[str] | None) -> Iterator[str]:
    if include is not None:
        yield from [include] if isinstance(include, str) else include
