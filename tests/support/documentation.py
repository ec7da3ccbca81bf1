"""The pages of the documentation, and their blocks of code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: Those whose blocks of Python run one by one. The blocks of a tutorial are one script, for tests of its own.
RUN_PAGES = [page for page in PAGES if page.parent != ROOT / "docs" / "tutorials"]


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: its page, from the repository's root.
        line: the number of its first line.
        language: what follows the backticks.
        text: what is between them.
        reason: why it isn't run, from the comment above.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, text: str) -> list[Block]:
    """The blocks of a page."""
    pattern = re.compile(r"(?:^<!-- not run: ([^>]*?) -->\n)?^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [
        Block(page, text[: found.start(3)].count("\n") + 1, found[2], found[3], found[1] or "")
        for found in pattern.finditer(text)
    ]
