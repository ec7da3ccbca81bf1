"""The pages written as static files: every page that a reader can get to from the first, by the templates of the server."""

from __future__ import annotations

import re
from pathlib import Path

from xent_metrics.errors import InvalidInputError
from xent_metrics.files import is_leftover, replacing
from xent_metrics.view.links import INDEX, PageNotFoundError
from xent_metrics.view.site import ASSETS, Site, asset

__all__ = ["export_site"]

#: Links in our own templates. Texts of runs can't look like one: their quotes are escaped.
_LINK = re.compile(rb'href="([a-z0-9-]+\.html)"')


def export_site(site: Site, target: Path) -> int:
    """Write all pages into a folder and return their number.

    Args:
        site: its pages; one that isn't live, with bounds on the documents and on the runs to compare with.
        target: a new or empty folder, or an earlier export, which is replaced.

    Raises:
        InvalidInputError: the folder holds other things.
    """
    _check(target)
    target.mkdir(parents=True, exist_ok=True)
    for name in ASSETS:
        _write(target / name, asset(name))
    waiting, written = [INDEX], {INDEX}
    while waiting:
        name = waiting.pop()
        try:
            content = site.page(name)
        except PageNotFoundError as error:  # a run that was deleted while the others were written
            content = site.message("Not found", f"{error}.")
        _write(target / name, content)
        linked = {found.decode() for found in _LINK.findall(content)} - written
        written |= linked
        waiting += sorted(linked)
    for old in target.iterdir():
        if old.name not in written and old.suffix == ".html":
            old.unlink(missing_ok=True)
    return len(written)


def _check(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise InvalidInputError(f"{target} is a file; expected a folder to write the pages into")
    names = {path.name for path in target.iterdir() if not is_leftover(path.name)} if target.exists() else set()
    if names >= ASSETS.keys():
        others = {name for name in names - ASSETS.keys() if not name.endswith(".html")}
    else:  # of an export that was killed there may be only some of our own files, which come first
        others = {name for name in names if name not in ASSETS or (target / name).read_bytes() != asset(name)}
    if others:
        raise InvalidInputError(f"{target} holds {min(others)}; expected a new or empty folder, or an earlier export")


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as written:
        written.write_bytes(content)
