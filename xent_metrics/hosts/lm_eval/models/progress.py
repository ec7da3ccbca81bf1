"""A progress bar for terminals, and for logs and notebooks, which it doesn't fill: `progress_bar`."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

__all__ = ["progress_bar"]

_SECONDS = 30  # between two lines in a log


def progress_bar(*iterable: Any, hidden: bool = False, **options: Any) -> tqdm:
    """A bar of tqdm on stderr. If that isn't a terminal, the bar is written at its beginning and end and twice a minute.

    Args:
        iterable: at most one, to iterate over.
        hidden: show nothing.
        options: tqdm's.
    """
    pace = {} if sys.stderr.isatty() else {"mininterval": _SECONDS, "maxinterval": 2 * _SECONDS}
    return tqdm(*iterable, disable=hidden, **pace, **options)
