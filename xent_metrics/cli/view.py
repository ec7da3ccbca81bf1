"""`xent view`: a folder of lm-eval's runs as a local page, or as static files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xent_metrics.cli.output import print_note

if TYPE_CHECKING:
    from xent_metrics.view.folder import RunFolder

__all__ = ["view"]


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
    from xent_metrics.errors import InvalidInputError
    from xent_metrics.view.folder import RunFolder
    from xent_metrics.view.site import Site

    if not folder.is_dir():
        raise InvalidInputError(f"no folder {folder}; expected one that holds output folders of lm-eval")
    runs = RunFolder(folder)
    baselines = _baselines(runs, against)
    if export is not None:
        from xent_metrics.view.export import export_site

        first = [run.slug for run in runs.snapshot().runs[:1]]
        most = 20 if documents is None else documents
        site = Site(runs, most_documents=most, baselines=first if baselines is None else baselines)
        print_note(f"{export_site(site, export)} pages")
        print(export / "index.html")
        return
    from xent_metrics.view.server import is_loopback, serve

    if not is_loopback(host):
        print_note(f"Listening on {host}: whoever reaches this machine can read the runs.")
    serve(Site(runs, live=True, most_documents=documents, baselines=baselines), host, port)


def _baselines(runs: RunFolder, against: list[str] | None) -> list[str] | None:
    """The slugs of the runs that are named."""
    from xent_metrics.errors import InvalidInputError

    named = {run.name: run.slug for run in runs.snapshot().runs}
    for name in against or ():
        if name not in named:
            shown = ", ".join(list(named)[:10]) or "none"
            raise InvalidInputError(f"no run {name!r} in the folder; its first runs: {shown}")
    return [named[name] for name in against] if against else None
