"""Where the commands' tables go."""

from __future__ import annotations

import os

from rich.console import Console

__all__ = ["table_console"]

_WIDE = 160  # characters: every column of every table


def table_console() -> Console:
    """Standard output. A pipe or a file, which has no width of its own, gets one in which nothing is cut off."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_WIDE)
