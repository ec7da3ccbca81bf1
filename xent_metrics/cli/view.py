"""`xent view`: a folder of lm-eval's runs as a local page, or as static files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xent_metrics.cli.output import print_note

if TYPE_CHECKING:
    from xent_metrics.view.folder import RunFolder

__all__ = ["view"]

_DOCUMENTS_IN_EXPORT = 20


def view(
    folder: Annotated[Path, typer.Argument(help="Folder that holds lm-eval's output folders, at any depth.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; by default only this machine can read it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the pages as static files into this folder instead.")
    ] = None,
    documents: Annotated[
        int | None,
        typer.Option(
            help="Show so many documents of a task, the highest loss first; by default all, 20 in an export.", min=0
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="Runs to compare with; by default any, the first one in an export."),
    ] = None,
) -> None:
    """Show runs and checkpoints, those to come included: tables, metrics over training, differences, documents."""
    runs = _opened(folder)
    baselines = _baselines(runs, against)
    if export is not None:
        _export(runs, export, documents, baselines)
    else:
        _serve(runs, host, port, documents, baselines)


def _opened(folder: Path) -> RunFolder:
    from xent_metrics.errors import InvalidInputError
    from xent_metrics.view.folder import RunFolder

    if not folder.is_dir():
        raise InvalidInputError(f"no folder {folder}; expected one that holds output folders of lm-eval")
    runs = RunFolder(folder)
    if not runs.snapshot().runs:
        print_note(
            f"{folder} holds no run of lm-eval that can be read. A run is a folder with a results_….json: write one with "
            "xent lm-eval run … --output_path DIR --log_samples"
        )
    return runs


def _export(runs: RunFolder, target: Path, documents: int | None, baselines: list[str] | None) -> None:
    from xent_metrics.view.export import export_site
    from xent_metrics.view.site import Site

    first = [run.slug for run in runs.snapshot().runs[:1]]
    most = _DOCUMENTS_IN_EXPORT if documents is None else documents
    pages = export_site(Site(runs, most_documents=most, baselines=first if baselines is None else baselines), target)
    print_note(f"{pages} pages")
    print(target / "index.html")


def _serve(runs: RunFolder, host: str, port: int, documents: int | None, baselines: list[str] | None) -> None:
    from xent_metrics.view.server import is_loopback, serve
    from xent_metrics.view.site import Site

    if not is_loopback(host):
        print_note(f"Listening on {host}: whoever reaches this machine can read the runs.")
    serve(Site(runs, live=True, most_documents=documents, baselines=baselines), host, port)


def _baselines(runs: RunFolder, against: list[str] | None) -> list[str] | None:
    """The slugs of the runs that are named."""
    from xent_metrics.errors import InvalidInputError

    found = runs.snapshot().runs
    named = {run.key: run.slug for run in found} | {run.name: run.slug for run in found}
    for name in against or ():
        if name not in named:
            shown = ", ".join(run.name for run in found[:10]) or "none"
            raise InvalidInputError(f"no run {name!r} in the folder; its first runs: {shown}")
    return [named[name] for name in against] if against else None
