"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; it takes the place of `path` when the context ends without an error.

    Until then, and after an error, `path` is as it was. What isn't a regular file, such as ``/dev/stdout``, is written to
    directly.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder) / "page.html") as new:
    ...         _ = new.write_text("a page")
    ...     [file.name for file in Path(folder).iterdir()]
    ['page.html']
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        yield path
        return
    beside = path.with_name(
        f".{path.stem[:100]}.{os.getpid()}{path.suffix}"
    )  # the ending tells some writers the format
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
