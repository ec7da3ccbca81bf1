"""The `xent` command: its groups of commands, `--version`, shell completion and how errors are shown.

    xent metrics      xent explain NAME      xent plugins      xent tasks      xent lm-eval run …      xent compare RUN RUN

Modules of commands import torch and the hosts inside their functions, so that help and completion answer at once. An error
of this package is one message on stderr and exit status 2. Tables are for people, `--json` is for programs.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import Annotated

import typer

from xent_metrics.cli import plot
from xent_metrics.cli.compare import compare
from xent_metrics.cli.doctor import doctor
from xent_metrics.cli.explain import explain
from xent_metrics.cli.intervals import intervals
from xent_metrics.cli.lm_eval import PASS_ON, lm_eval
from xent_metrics.cli.metrics import metrics
from xent_metrics.cli.models import compare_models
from xent_metrics.cli.new_plugin import new_plugin
from xent_metrics.cli.output import print_error
from xent_metrics.cli.plugin_commands import XentGroup
from xent_metrics.cli.plugins import plugins
from xent_metrics.cli.report import report
from xent_metrics.cli.rescore import rescore
from xent_metrics.cli.series import series
from xent_metrics.cli.tasks import tasks
from xent_metrics.cli.view import view
from xent_metrics.errors import XentMetricsError

__all__ = ["app", "main"]

app = typer.Typer(
    cls=XentGroup,
    help="Exact loss metrics for language models: one definition in Lightning, lm-eval and plain PyTorch.",
    epilog="Plugins may add commands: `xent plugins` lists them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The console script: run `app`; an error of this package, or of the system, is one message and exit status 2.

    What the output's encoding doesn't have, such as Σ in ASCII, is printed as "?". A reader of the output that leaves ends
    the command with exit status 1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        _run()
    except XentMetricsError as error:
        print_error(error)
        sys.exit(2)
    except OSError as error:
        if error.errno is None:
            raise  # not the system's: transformers, for one, raises OSErrors of its own
        _drop_output()
        if isinstance(error, BrokenPipeError):
            sys.exit(1)
        print_error(error)
        sys.exit(2)


def _run() -> None:
    """Run `app`, and write out what it printed while an error can still be said."""
    try:
        app()
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()


def _drop_output() -> None:
    """Forget what stdout didn't take. Python would try again at its end, and complain."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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


app.command()(metrics)
app.command()(explain)
app.command()(plugins)
app.command()(doctor)
app.command()(tasks)
app.command("lm-eval", context_settings=PASS_ON)(lm_eval)
app.command()(compare)
app.command()(compare_models)
app.command()(series)
app.command()(intervals)
app.command()(report)
app.command()(view)
app.command()(rescore)
app.command()(new_plugin)
app.add_typer(plot.app, name="plot")
