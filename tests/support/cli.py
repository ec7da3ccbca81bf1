"""The `xent` command run in this process, and what its tables look like."""

from __future__ import annotations

from rich.cells import cell_len
from typer.testing import CliRunner

from xent_metrics.cli.app import app


def xent(*arguments: object, width: int = 300, exit_code: int = 0) -> str:
    """What the command prints on stdout at a width of the terminal; it must end with this status."""
    result = CliRunner(env={"COLUMNS": str(width)}).invoke(app, [*map(str, arguments)])
    assert result.exit_code == exit_code, (result.output, result.exception)
    return result.stdout


def fits(text: str, width: int) -> bool:
    """True if no line is wider and nothing was cut off."""
    return max(map(cell_len, text.splitlines())) <= width and "…" not in text.replace(" … ", "")
