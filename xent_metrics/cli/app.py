"""`xent`: what is registered, what is installed, which tasks ship, and lm-eval's command with all of it.

    xent metrics [--json]      xent plugins [--json]      xent tasks [--json | --path]      xent lm-eval run --tasks …

An error of ours is one message on stderr and exit status 2; tables are for people, `--json` is for programs.
"""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from xent_metrics.cli import plot as cli_plot
from xent_metrics.cli.analysis import compare, compare_models, intervals, report
from xent_metrics.cli.tables import table_console
from xent_metrics.errors import XentMetricsError

if TYPE_CHECKING:
    from xent_metrics.plugins import Plugin, Plugins
    from xent_metrics.sums.metric import TokenMetric

__all__ = ["app", "main"]

app = typer.Typer(
    help="Exact loss metrics for language models: one definition in Lightning, lm-eval and plain PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
#: lm-eval gets all its own options as they are.
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def main() -> None:
    """The console script: `app`, with our errors as one message and exit status 2."""
    try:
        app()
    except XentMetricsError as error:
        Console(stderr=True, soft_wrap=True).print(
            f"[bold red]{type(error).__name__}:[/] {escape(str(error))}", highlight=False
        )
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        from xent_metrics.version import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _xent(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def metrics(as_json: _AsJson = False) -> None:
    """List the registered metrics: formula, unit, options, needed scores, plugin."""
    loaded = _plugins()
    found = [
        _metric_facts(metric) | {"plugin": plugin.name, "distribution": plugin.distribution, "version": plugin.version}
        for plugin in loaded.plugins
        for metric in plugin.metrics.values()
    ]
    if as_json:
        _print_json(found)
        return
    rows = [
        [
            f"[bold]{fact['name']}[/]\n" + escape(f"{fact['formula']}\n{fact['value_unit']}".strip()),
            escape("\n".join(f"{option}={default}" for option, default in fact["options"].items())),
            escape(f"{', '.join(fact['requires'])}\n{' or '.join(fact['row_kinds'])} scores"),
            escape(f"{fact['plugin']}\n{fact['distribution']} {fact['version']}"),
        ]
        for fact in sorted(found, key=lambda fact: str(fact["name"]))
    ]
    _print_table(["metric, formula, unit", "options", "needs", "plugin"], rows)
    _print_set_aside(loaded)


@app.command()
def plugins(as_json: _AsJson = False) -> None:
    """List the installed plugins: what each brings, or the error that set it aside."""
    from xent_metrics.task_folders import task_configs_folder

    found = [_plugin_facts(plugin) for plugin in _plugins().plugins]
    found[0]["task_configs"] = [str(task_configs_folder())]  # the built-ins come first
    if as_json:
        _print_json(found)
        return
    rows = [
        [
            f"[bold]{escape(fact['name'])}[/]",
            escape(f"{fact['distribution']} {fact['version']}"),
            f"[red]set aside: {escape(fact['error'])}[/]" if fact["error"] else escape("\n".join(fact["hooks"])),
            escape("\n".join(fact["metrics"])),
            escape("\n".join(fact["task_configs"])),
        ]
        for fact in found
    ]
    _print_table(["plugin", "distribution", "hooks", "metrics", "task folders"], rows)


@app.command()
def tasks(
    as_json: _AsJson = False,
    path: Annotated[bool, typer.Option("--path", help="Print our folder alone, for lm_eval --include_path.")] = False,
) -> None:
    """List the lm-eval tasks that ship here and with plugins, and whether their data need the network."""
    from xent_metrics.task_folders import list_tasks, task_configs_folder, task_folders

    if path:
        print(task_configs_folder())
        return
    found = [task for folder in task_folders() for task in list_tasks(folder)]
    if as_json:
        _print_json([vars(task) for task in found])
        return
    rows = [
        [
            f"[bold]{escape(task.name)}[/]",
            f"[red]set aside: {escape(task.error)}[/]" if task.error else escape(task.description),
            "" if task.error else escape(f"{task.output_type}: {', '.join(task.metrics)}"),
            "" if task.error else "network" if task.needs_network else "offline",
        ]
        for task in found
    ]
    _print_table(["task", "what", "scores", "data"], rows)


@app.command("lm-eval", context_settings=_PASS_ON)
def lm_eval(
    context: typer.Context,
    xent_metrics: Annotated[
        str | None,
        typer.Option(
            "--xent_metrics", metavar="a,b:option=value;…", help="Put these metrics on every task of the run."
        ),
    ] = None,
) -> None:
    """Run lm-eval's own command, which also knows xent-hf, xent-torch, our tasks and every plugin's.

    All else is passed on: `xent lm-eval run --help` is lm-eval's own help.
    """
    if context.args in ([], ["--help"], ["-h"]):
        print(context.get_help())
        return
    from xent_metrics.hosts.lm_eval.command import run

    run(context.args, xent_metrics)


app.command()(compare)
app.command()(compare_models)
app.command()(intervals)
app.command()(report)
app.add_typer(cli_plot.app, name="plot")


def _plugins() -> Plugins:
    """The loaded plugins, without the warnings about those set aside, which the lists show."""
    from xent_metrics.plugins import plugins

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plugins()


def _metric_facts(metric: type[TokenMetric]) -> dict[str, Any]:
    return {
        "name": metric.name,
        "summary": (inspect.getdoc(metric) or "").partition("\n")[0],
        "formula": metric.formula,
        "value_unit": metric.value_unit,
        "options": {name: _default(option) for name, option in metric.options().items()},
        "requires": _needs(metric),
        "row_kinds": sorted(metric.row_kinds),
        "higher_is_better": metric.higher_is_better,
        "reference": metric.reference,
    }


def _needs(metric: type[TokenMetric]) -> list[str]:
    """The scores that the metric requires, and the logits where they are not enough."""
    from xent_metrics.metrics.pair_metric import PairMetric
    from xent_metrics.sums.metric import TokenMetric

    if issubclass(metric, PairMetric):
        return ["logits of two models"]
    return sorted(metric.requires) + ["logits"] * (metric.extra_scores is not TokenMetric.extra_scores)


def _default(option: inspect.Parameter) -> Any:
    return "required" if option.default is option.empty else option.default


def _plugin_facts(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "hooks": plugin.hooks,
        "metrics": sorted(plugin.metrics),
        "task_configs": [str(folder) for folder in plugin.task_configs],
        "error": f"{type(plugin.error).__name__}: {plugin.error}" if plugin.error else None,
    }


def _print_json(found: Sequence[Mapping[str, Any]]) -> None:
    print(json.dumps(found, indent=2, ensure_ascii=False, default=str))


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(show_lines=True)
    names = max((len(row[0].partition("[/]")[0]) - len("[bold]") for row in rows), default=0)
    for place, column in enumerate(columns):
        table.add_column(column, overflow="fold", min_width=0 if place else names)  # a name stays in one piece
    for row in rows:
        table.add_row(*row)
    table_console().print(table)


def _print_set_aside(loaded: Plugins) -> None:
    broken = [str(plugin) for plugin in loaded.plugins if plugin.error is not None]
    if broken:
        Console(stderr=True).print(f"Set aside: {', '.join(broken)}; see `xent plugins`.", highlight=False)


if __name__ == "__main__":
    main()
