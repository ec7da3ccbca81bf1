"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xent_metrics.errors import InvalidInputError

__all__ = ["is_leftover", "replacing", "require_writable", "require_writable_file"]


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; it takes the place of `path` when the context ends without an error.

    Until then, and after an error, `path` is as it was. Several processes may do so at once: the last one's file stays. Of
    a process that is killed, a file is left that `is_leftover`. What isn't a regular file, such as ``/dev/stdout``, is
    written to directly.

    Raises:
        OSError: it can't be written; its `filename` is `path`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder) / "page.html") as new:
    ...         _ = new.write_text("a page")
    ...     [file.name for file in Path(folder).iterdir()]
    ['page.html']
    """
    # Only a link is resolved: realpath would take the ".." of `nowhere/../page.html` without looking whether there is a nowhere.
    path = Path(os.path.realpath(path) if os.path.islink(path) else path)
    beside = _beside(path) if path.is_file() or not path.exists() else path
    try:
        yield beside
        if beside != path:
            if path.exists():
                shutil.copymode(path, beside)
            os.replace(beside, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(beside)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if beside != path:
            with suppress(OSError):
                beside.unlink()


def require_writable(path: str | Path) -> None:
    """Raise now what would be raised once the work is done whose result is to be written to `path`. Nothing is made.

    Args:
        path: a file or folder; its folders need not exist yet.

    Raises:
        OSError: no file can be made there; its `filename` is `path`.

    >>> require_writable("/dev/null/page.html")
    Traceback (most recent call last):
    NotADirectoryError: [Errno 20] Not a directory: '/dev/null/page.html'
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        return  # such as /dev/stdout
    folder = Path(os.path.realpath(path if path.is_dir() else path.parent))
    try:
        while not os.path.lexists(folder):
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def require_writable_file(path: Path) -> None:
    """The same for a file whose folder isn't made for it.

    Raises:
        InvalidInputError: the folder doesn't exist.
        OSError: no file can be made there; its `filename` is `path`.

    >>> require_writable_file(Path("nowhere/page.html"))
    Traceback (most recent call last):
    xent_metrics.errors.InvalidInputError: nowhere/page.html: the folder nowhere doesn't exist; create it first [E001]
    """
    if not path.parent.is_dir():
        raise InvalidInputError(f"{path}: the folder {path.parent} doesn't exist; create it first")
    require_writable(path)


def is_leftover(name: str) -> bool:
    """True if this is the name of a file that `replacing` was writing when its process was killed.

    >>> is_leftover(".page.html.0c5d8e7a.part"), is_leftover("page.html")
    (True, False)
    """
    return re.fullmatch(r"\..{1,20}\.[0-9a-f]{8}\.part", name, re.DOTALL) is not None


def _beside(path: Path) -> Path:
    """A name that no other process has, on whatever machine, and that isn't longer than a file's may be."""
    return path.with_name(f".{path.name[:20]}.{os.urandom(4).hex()}.part")
