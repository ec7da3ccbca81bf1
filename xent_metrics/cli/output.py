"""What all commands print: JSON for programs, errors and notes on stderr."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from xent_metrics.analysis.runs import Run

__all__ = ["AsJson", "print_error", "print_json", "print_note", "print_problems", "printable"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def print_json(found: Sequence[Mapping[str, Any]]) -> None:
    """Print records as JSON; numbers that are not finite become null, and what the output's encoding lacks is escaped."""
    from xent_metrics.analysis.json_lines import encodable_json

    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(encodable_json(_finite(found), encoding, indent=2, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_error(error: BaseException) -> None:
    """Print one message on stderr, in red as far as the terminal has colours."""
    from rich.text import Text

    _print_on_stderr(Text.assemble((f"{type(error).__name__}:", "bold red"), " ", printable(str(error))))


def print_note(text: str) -> None:
    """Print a line on stderr, so that it isn't in the way of what a program reads."""
    _print_on_stderr(printable(text))


def print_problems(run: Run) -> None:
    """Print on stderr what could not be read of a run."""
    for problem in run.problems:
        print_note(f"{run.path.parent}: {problem}")


def _print_on_stderr(text: Any) -> None:
    from rich.console import Console

    with suppress(OSError):  # who can't be told isn't told; what was asked for is done
        Console(stderr=True, soft_wrap=True).print(text, highlight=False, markup=False, emoji=False)


def printable(text: str) -> str:
    r"""Show control characters, such as the ESC of a file's name, instead of sending them to the terminal.

    >>> printable("a\x1b[31mb\nc")
    'a\\x1b[31mb\nc'
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
