"""The pages written as static files: every page that a reader can get to from the first, by the templates of the server."""

from __future__ import annotations

import re
from pathlib import Path

from xent_metrics.errors import InvalidInputError
from xent_metrics.files import replacing
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
    for old in target.glob("*.html"):
        if old.name not in written:
            old.unlink()
    return len(written)


def _check(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise InvalidInputError(f"{target} is a file; expected a folder to write the pages into")
    names = {path.name for path in target.iterdir()} if target.exists() else set()
    others = sorted(name for name in names if name not in ASSETS and not name.endswith(".html"))
    if names and (others or not names >= ASSETS.keys()):
        held = others[0] if others else sorted(names)[0]
        raise InvalidInputError(f"{target} holds {held}; expected a new or empty folder, or an earlier export")


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as written:
        written.write_bytes(content)
