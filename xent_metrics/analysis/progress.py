"""A bar on the terminal for what takes more than a few seconds; none without tqdm, or where stderr is no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

__all__ = ["Bar", "progress_bar"]

_AFTER = 2.0  # seconds


class Bar(Protocol):
    """What is told how far the work has come."""

    def update(self, n: float = 1) -> object:
        """So much more is done."""


class _NoBar:
    def update(self, n: float = 1) -> None:
        pass


@contextmanager
def progress_bar(what: str, total: int, unit: str) -> Iterator[Bar]:
    """Show what is being done, how far it has come and how long it will take.

    Args:
        what: is being done.
        total: how many units there are to do.
        unit: of the work, such as "documents".
    """
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        yield _NoBar()
    else:
        with tqdm(
            total=total, desc=what, unit=f" {unit}", unit_scale=True, disable=None, delay=_AFTER, leave=False
        ) as bar:
            yield bar
