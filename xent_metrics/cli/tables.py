"""Tables that fit the terminal: names stay whole, text wraps, and columns without room are left out and named below."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xent_metrics.cli.output import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from xent_metrics.analysis.runs import Run

__all__ = [
    "METRIC_AND_UNIT",
    "Column",
    "metric_and_unit",
    "print_legend",
    "print_reasons",
    "print_run",
    "print_table",
    "table_console",
]

_PIPE_WIDTH = 160  # characters: every column of every table
_FOLDED_WIDTH = 20  # the least width of a column that may break within words


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        header: its heading; a line for each quantity that its cells hold one below the other.
        drop: 0 to keep the column always; otherwise the column with the largest number is the first to be left out.
        fold: break long words, such as paths, to make the column narrower; otherwise it wraps at spaces only.
        bold: print the first line of each cell in bold.
        justify: left for text, right for numbers.
    """

    header: str
    drop: int = 0
    fold: bool = False
    bold: bool = False
    justify: Literal["left", "right"] = "left"


def print_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    sections: Collection[int] | None = None,
) -> None:
    """Print rows of plain text as a table.

    Args:
        columns: one per cell of a row.
        rows: the cells; control characters and rich's markup in them are shown as they are.
        title: printed above the table.
        sections: the rows that a line follows; after every row by default.
    """
    from rich.table import Table
    from rich.text import Text

    console = table_console()
    cells = [[_cell(column, text) for column, text in zip(columns, row, strict=True)] for row in rows]
    widths = _widths(columns, cells, console.width)
    table = Table(show_lines=sections is None)
    lines = max((column.header.count("\n") for column in columns), default=0)
    for place, width in widths.items():
        column = columns[place]
        header = column.header + "\n" * (lines - column.header.count("\n"))  # first lines on a level: rich aligns below
        table.add_column(header, justify=column.justify, overflow="fold", width=width)
    for number, row in enumerate(cells):
        table.add_row(*(row[place] for place in widths), end_section=number in (sections or ()))
    console.width = max(console.width, _total(widths.values()))  # rather too wide than cut off
    if title is not None:  # as a line of its own, since rich would wrap it within the width of the table
        console.print(Text(printable(title), "italic"), soft_wrap=True)
    console.print(table)
    left_out = [column.header.replace("\n", " and ") for place, column in enumerate(columns) if place not in widths]
    if left_out:
        note = f"No room for: {', '.join(left_out)}. Use a wider terminal or --json."
        console.print(note, style="dim", highlight=False)


#: The heading of cells by `metric_and_unit`.
METRIC_AND_UNIT = "metric\nunit"


def metric_and_unit(metric: str, unit: str) -> str:
    r"""A cell with a metric's name, as words that can wrap, and its unit below.

    >>> metric_and_unit("bits_per_byte", "bits per byte")
    'bits per byte\nbits per byte'
    """
    return f"{metric.replace('_', ' ')}\n{unit}".strip()


def print_run(letter: str, run: Run) -> None:
    """Print what a run's letter stands for."""
    line = printable(f"{letter}: {run.model} ({run.path.parent})")
    table_console().print(line, highlight=False, soft_wrap=True, markup=False)


def print_reasons(reasons: Iterable[str]) -> None:
    """Print what cells refer to as [1], [2] …."""
    for number, reason in enumerate(reasons, 1):
        table_console().print(printable(f"[{number}] {reason}"), highlight=False, markup=False)


def print_legend(text: str) -> None:
    """Print what the columns mean."""
    table_console().print(text, highlight=False, style="dim")


def table_console() -> Console:
    """Standard output; a pipe or a file, which has no width of its own, gets one that holds every column."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_PIPE_WIDTH)


def _cell(column: Column, text: str) -> Text:
    from rich.text import Text

    first, newline, rest = printable(text).partition("\n")
    return Text.assemble((first, "bold" if column.bold else ""), newline + rest)


def _widths(columns: Sequence[Column], cells: Sequence[Sequence[Text]], room: int) -> dict[int, int]:
    """The width of each column that is shown, by its place."""
    least, most = {}, {}
    for place, column in enumerate(columns):
        texts = [column.header, *(row[place].plain for row in cells)]
        words = _longest(word for text in texts for word in text.split())
        least[place] = min(words, max(_FOLDED_WIDTH, len(column.header))) if column.fold else words
        most[place] = _longest(line for text in texts for line in text.splitlines())
    shown = set(least)
    while _total(least[place] for place in shown) > room and any(columns[place].drop for place in shown):
        shown.remove(max(shown, key=lambda place: columns[place].drop))
    return _grown({place: least[place] for place in sorted(shown)}, most, room)


def _grown(widths: dict[int, int], most: dict[int, int], room: int) -> dict[int, int]:
    """Give the room that is left to the narrowest columns first, to each as much as its text can use."""
    for _ in range(room - _total(widths.values())):
        growing = [place for place in widths if widths[place] < most[place]]
        if growing:
            widths[min(growing, key=widths.__getitem__)] += 1
    return widths


def _longest(texts: Iterable[str]) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, texts), default=0)


def _total(widths: Iterable[int]) -> int:
    """The width of a table: each column has a space on both sides and a line after it; one line comes first."""
    return sum(width + 3 for width in widths) + 1
