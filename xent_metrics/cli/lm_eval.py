"""`xent lm-eval …`: lm-eval's own command with our models and tasks."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["PASS_ON", "lm_eval"]

#: Settings of a command whose other options, `--help` included, are lm-eval's.
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def lm_eval(
    context: typer.Context,
    xent_metrics: Annotated[
        str | None,
        typer.Option(
            "--xent_metrics", metavar="a,b:option=value;…", help="Add these metrics to every task of the run."
        ),
    ] = None,
    xent_only: Annotated[
        bool,
        typer.Option("--xent_only", help="Leave lm-eval's own metrics out; no text is then generated."),
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="DIR", help="Keep every result in DIR, and go on from the results in it."),
    ] = None,
) -> None:
    """Run lm-eval's own command with the models of xent-metrics, and the tasks of xent-metrics and of plugins.

    The models are xent-hf, xent-torch, xent-vllm, xent-sglang and xent-completions.

    All other options are passed on to lm-eval; `xent lm-eval run --help` prints its help.
    """
    if context.args in ([], ["--help"], ["-h"]):
        print(context.get_help())
        return
    from xent_metrics.hosts.lm_eval.command import run

    run(context.args, xent_metrics, only=xent_only, resume_from=resume)
