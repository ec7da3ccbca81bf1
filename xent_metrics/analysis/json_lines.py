"""A file of samples as lm-eval writes it: one JSON object per line, with the tokens inside if they were logged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["JsonLines"]


class JsonLines:
    """The lines of a file, each found again by where it begins.

    `ParquetSamples` reads the other format in the same way.

    Args:
        path: the file.
    """

    row = "line"  # what messages call a document's place
    has_columns = False  # the tokens are in the documents' JSON

    def __init__(self, path: Path) -> None:
        self.path = path

    def documents(self) -> Iterator[tuple[int, str | bytes]]:
        """Where each line begins, and the line."""
        address = 0
        with self.path.open("rb") as lines:
            for line in lines:
                yield address, line
                address += len(line)

    def at(self, addresses: Iterable[int]) -> Iterator[str | bytes]:
        """The lines that begin there; it is fastest if the numbers rise."""
        with self.path.open("rb") as lines:
            for address in addresses:
                lines.seek(address)
                yield lines.readline()

    def results(self, address: int) -> Mapping[int, Mapping[str, Any]]:
        """Of the results that list their tokens outside of the line: none."""
        return {}
