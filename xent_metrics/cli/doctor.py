"""`xent doctor`: what is wrong with the installation, with task configurations or with runs, and how to fix it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xent_metrics.cli.output import AsJson, print_json, print_note

if TYPE_CHECKING:
    from xent_metrics.doctor.findings import Finding

__all__ = ["doctor"]


def doctor(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[YAML | TASK | RUN]…",
            help="Task YAMLs, names of lm-eval tasks, or lm-eval output folders; the installation by default.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Check that this model of lm-eval, such as hf, can feed the metrics."),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Mend what can be mended in YAMLs, show a diff, and list what is left.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the installation, task configurations before they run, or whether runs can be compared.

    The exit status is 1 if there are errors among the findings, and 2 if the command can't be understood.
    """
    with _quiet():
        diffs = _mend([Path(target) for target in targets or () if _is_yaml(target)], model) if write else []
        found = _check(targets or [], model)
    for diff in diffs:
        (print_note if as_json else _print_diff)(diff)
    if as_json:
        print_json([each.to_json() for each in found])
    else:
        _print(found)
    if any(each.severity == "error" for each in found):
        raise typer.Exit(1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings and logs: what they say of plugins and tasks is among the findings."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _check(targets: Sequence[str], model: str | None) -> list[Finding]:
    if not targets:
        from xent_metrics.doctor.installation import check_installation

        return check_installation()
    yamls = [Path(target) for target in targets if _is_yaml(target)]
    runs = [Path(target) for target in targets if not _is_yaml(target) and _is_path(target)]
    names = [target for target in targets if not _is_yaml(target) and not _is_path(target)]
    return [*_check_tasks(yamls, names, model), *_check_runs(runs)]


def _is_yaml(target: str) -> bool:
    return target.endswith((".yaml", ".yml"))


def _is_path(target: str) -> bool:
    return os.path.exists(target) or os.sep in target


def _check_tasks(yamls: Sequence[Path], names: Sequence[str], model: str | None) -> list[Finding]:
    if not yamls and not names:
        return []
    from xent_metrics.doctor.tasks import check_names, check_yaml
    from xent_metrics.errors import InvalidInputError

    for path in yamls:
        if not path.is_file():
            raise InvalidInputError(f"no file {path}; expected the YAML of a task or group")
    named = check_names(names, model) if names else []
    return [*(finding for path in yamls for finding in check_yaml(path, model)), *named]


def _mend(yamls: Sequence[Path], model: str | None) -> list[str]:
    """Mend YAMLs and return the diffs."""
    from xent_metrics.doctor.mending import mend_yaml
    from xent_metrics.errors import InvalidInputError

    if not yamls:
        raise InvalidInputError("--write mends YAMLs; got none. Name the files")
    return [diff for path in yamls if (diff := mend_yaml(path, _check_tasks([path], [], model)))]


def _print_diff(diff: str) -> None:
    from rich.text import Text

    from xent_metrics.cli.output import printable
    from xent_metrics.cli.tables import table_console

    for line in diff.splitlines():
        style = {"-": "red", "+": "green"}.get(line[:1], "")
        table_console().print(Text(printable(line), style=style), soft_wrap=True)


def _check_runs(runs: Sequence[Path]) -> list[Finding]:
    from xent_metrics.analysis.runs import read_run
    from xent_metrics.doctor.runs import check_runs

    return check_runs([read_run(path) for path in runs])


def _print(found: Sequence[Finding]) -> None:
    """Print each finding: its severity, kind and place on one line, and what it says below."""
    from rich.padding import Padding
    from rich.text import Text

    from xent_metrics.cli.output import printable
    from xent_metrics.cli.tables import table_console
    from xent_metrics.doctor.findings import SEVERITIES, counted

    console, styles = table_console(), {"error": "bold red", "warning": "bold yellow", "note": "dim"}
    for each in sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)):
        head = Text.assemble((each.severity, styles[each.severity]), f" {each.kind}: ", (printable(each.place), "bold"))
        text = Padding(Text(printable(each.text), overflow="fold"), (0, 0, 0, 2), expand=False)
        console.print(head, text, sep="\n")
    console.print(counted(found) if found else "No findings.")
