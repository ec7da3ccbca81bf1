"""`xent plugins`: what is installed."""

from __future__ import annotations

from typing import Any

import typer

from xent_metrics.cli.output import AsJson, print_json, printable
from xent_metrics.cli.plugin_commands import PluginCommands, loaded_plugins, plugin_commands

__all__ = ["plugins"]


def plugins(context: typer.Context, as_json: AsJson = False) -> None:
    """List the installed plugins: the metrics, commands and task folders that each adds, or why it is set aside."""
    from xent_metrics.task_folders import task_configs_folder

    loaded = loaded_plugins()
    built_in: Any = context.find_root().command
    added = plugin_commands(loaded, built_in.commands)
    found = [_describe(next((e for e in added if e.plugin is p), PluginCommands(p))) for p in loaded.plugins]
    found[0]["commands"] = sorted(built_in.commands)  # the built-ins come first
    found[0]["task_configs"] = [str(task_configs_folder())]
    if as_json:
        print_json(found)
        return
    for each in found:
        _print(each)


def _describe(added: PluginCommands) -> dict[str, Any]:
    plugin = added.plugin
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "hooks": plugin.hooks,
        "metrics": sorted(plugin.metrics),
        "commands": sorted(added.commands),
        "task_configs": [str(folder) for folder in plugin.task_configs],
        "error": f"{type(plugin.error).__name__}: {plugin.error}" if plugin.error else None,
        "command_errors": [str(error) for error in added.errors],
    }


def _print(found: dict[str, Any]) -> None:
    """Print a plugin's name and, indented, a line for each kind of thing that it adds."""
    from rich.table import Table
    from rich.text import Text

    from xent_metrics.cli.tables import table_console

    lines = [
        ("set aside", found["error"] or ""),
        ("metrics", ", ".join(found["metrics"])),
        ("commands", ", ".join(found["commands"])),
        ("errors", "\n".join(found["command_errors"])),
        ("task folders", "\n".join(found["task_configs"])),
        ("hooks", ", ".join(found["hooks"])),
    ]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in lines:
        if text:
            table.add_row(f"  {label}", Text(printable(text), style="red" if label in ("set aside", "errors") else ""))
    name, where = found["name"], f"{found['distribution']} {found['version']}"
    table_console().print(Text.assemble((printable(name), "bold"), f"  {printable(where)}"), table, sep="\n")
