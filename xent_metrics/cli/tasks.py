"""`xent tasks`: the lm-eval tasks that ship with xent-metrics and its plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from xent_metrics.cli.output import AsJson, print_json

if TYPE_CHECKING:
    from xent_metrics.task_folders import TaskConfig

__all__ = ["tasks"]


def tasks(
    as_json: AsJson = False,
    path: Annotated[
        bool, typer.Option("--path", help="Print only the built-in task folder, for lm_eval --include_path.")
    ] = False,
) -> None:
    """List the lm-eval tasks of xent-metrics and its plugins, and whether their data come from the network."""
    from xent_metrics.task_folders import list_tasks, task_configs_folder, task_folders

    if path:
        print(task_configs_folder())
        return
    found = [task for folder in task_folders() for task in list_tasks(folder)]
    if as_json:
        print_json([vars(task) for task in found])
    else:
        _print(found)


def _print(found: list[TaskConfig]) -> None:
    from xent_metrics.cli.tables import Column, print_table

    columns = [
        Column("task", bold=True),
        Column("description", fold=True),
        Column("output type: metrics", drop=2),
        Column("data", drop=1),
    ]
    rows = [
        [task.name, f"set aside: {task.error}", "", ""]
        if task.error
        else [
            task.name,
            task.description,
            f"{task.output_type}: {', '.join(task.metrics)}",
            "network" if task.needs_network else "offline",
        ]
        for task in found
    ]
    print_table(columns, rows)
