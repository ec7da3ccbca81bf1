"""Names of pages: the same in every process and in an export, so that a run is a link.

All pages lie in one folder, and a name holds letters, digits, dots and hyphens only, whatever runs and tasks are called.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

__all__ = ["INDEX", "PageNotFoundError", "PageParts", "page_name", "page_parts", "slug"]

INDEX = "index.html"
_BETWEEN = "--"  # no slug holds two hyphens in a row
_LONGEST = 40


class PageNotFoundError(LookupError):
    """There is no page of this name; the message says what isn't there."""


@dataclass(frozen=True)
class PageParts:
    """A page's kind and the slugs of what it shows."""

    kind: str
    slugs: tuple[str, ...]


def slug(text: str) -> str:
    """A short name for a text, in which its end can be read; a hash tells apart what reads alike.

    >>> slug("runs/Step 10"), slug("runs/step_10"), slug("<b>")
    ('runs-step-10-269673de', 'runs-step-10-3c444e1c', 'b-507ca5a2')
    """
    readable = re.sub(r"[^a-z0-9]+", "-", text.lower())[-_LONGEST:].strip("-")
    digest = hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()[:8]
    return f"{readable}-{digest}" if readable else digest


def page_name(kind: str, *slugs: str) -> str:
    """The name of a page.

    >>> page_name("chart", slug("lambada"), slug("acc"))
    'chart--lambada-b34138a0--acc-41432230.html'
    """
    return _BETWEEN.join((kind, *slugs)) + ".html"


def page_parts(name: str) -> PageParts:
    """What `page_name` was given.

    Raises:
        PageNotFoundError: no page has such a name.

    >>> page_parts("run--a-12345678.html")
    PageParts(kind='run', slugs=('a-12345678',))
    """
    if not re.fullmatch(r"[a-z0-9-]+\.html", name):
        raise PageNotFoundError(f"no page is called {name[:100]!r}")
    kind, *slugs = name.removesuffix(".html").split(_BETWEEN)
    return PageParts(kind, tuple(slugs))
