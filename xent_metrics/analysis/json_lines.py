"""A file of samples as lm-eval writes it: one JSON object per line, with the tokens inside if they were logged.

And JSON that an encoding can hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["JsonLines", "encodable_json"]


def encodable_json(value: Any, encoding: str = "utf-8", **options: Any) -> str:
    r"""A value as JSON, with characters as they are unless the encoding lacks some, as UTF-8 lacks lone surrogates.

    Args:
        value: what JSON can hold.
        encoding: in which the JSON will be written.
        **options: passed to `json.dumps`.

    >>> encodable_json("é"), encodable_json("é", "ascii"), encodable_json("\ud800é")
    ('"é"', '"\\u00e9"', '"\\ud800\\u00e9"')
    """
    text = json.dumps(value, ensure_ascii=False, **options)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value, **options)
    return text


class JsonLines:
    """The lines of a file, each found again by where it begins.

    `ParquetSamples` reads the other format in the same way.

    Args:
        path: the file.
    """

    row = "line"  # what messages call a document's place
    unit = "bytes"  # of the documents' addresses
    has_columns = False  # the tokens are in the documents' JSON

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """The end of the addresses."""
        return self.path.stat().st_size

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
