"""A benchmark's measurements beside its claims; exit status 1 if a claim isn't held.

claims = Claims("scoring", quick=False)
claims.ratio("torchmetrics / ours", 2.4, at_least=2.0)
claims.holds("the same answers", True)
claims.report()
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

__all__ = ["Claims"]


class Claims:
    """A table with one row per measurement.

    Args:
        title: the title of the table.
        quick: a smoke test. Its sizes are too small for claims about time and memory, so only answers are judged.
    """

    def __init__(self, title: str, *, quick: bool = False) -> None:
        self.quick = quick
        self.missed: list[str] = []
        self._table = Table("what", "measured", "claim", "held", title=title)

    def note(self, name: str, measured: str) -> None:
        """A measurement without a claim."""
        self._table.add_row(name, measured, "", "")

    def ratio(
        self, name: str, value: float, *, at_least: float | None = None, at_most: float | None = None, seen: str = ""
    ) -> None:
        """A ratio of times or of memory; `seen` shows the two numbers."""
        self._judged(name, value, None if self.quick else at_least, None if self.quick else at_most, seen)

    def error(self, name: str, value: float, *, at_most: float) -> None:
        """The error of an answer."""
        self._judged(name, value, None, at_most, "")

    def holds(self, name: str, held: bool, seen: str = "") -> None:
        """An equality, or anything else that is true or false; `seen` shows numbers of it."""
        self._add(name, seen, "", held)

    def show(self) -> None:
        """Print the table."""
        Console().print(self._table)

    def report(self) -> None:
        """Print the table; exit with status 1 if a claim isn't held."""
        self.show()
        if self.missed:
            raise SystemExit("not held: " + "; ".join(self.missed))

    def _judged(self, name: str, value: float, least: float | None, most: float | None, seen: str) -> None:
        measured = f"{value:.2f}" if value == 0 or value >= 0.01 else f"{value:.1e}"
        measured += f" ({seen})" if seen else ""
        if least is None and most is None:
            self.note(name, measured)
            return
        bounds = [("≥", least, lambda bound: value >= bound), ("≤", most, lambda bound: value <= bound)]
        given = [(sign, bound, holds) for sign, bound, holds in bounds if bound is not None]
        claim = ", ".join(f"{sign} {bound:g}" for sign, bound, _ in given)
        held = all(holds(bound) for _, bound, holds in given)  # nan holds nothing
        self._add(name, measured, claim, held)

    def _add(self, name: str, measured: str, claim: str, held: bool) -> None:
        if not held:
            self.missed.append(name.strip())
        self._table.add_row(name, measured, claim, "yes" if held else "NO")
