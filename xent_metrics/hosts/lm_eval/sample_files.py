"""How the samples of a run are saved: as lm-eval's JSON lines, or with `log_tokens=parquet` as a Parquet file in their place.

lm-eval writes a sample for each document and filter, with each result in `resps` and in `filtered_resps`. Tokens are listed in
the first alone.

Who syncs: nobody. lm-eval has gathered the samples on rank 0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from xent_metrics.analysis.parquet_samples import Results, write_parquet_samples
from xent_metrics.errors import XentMetricsError
from xent_metrics.hosts.lm_eval.models.logged_tokens import LoggedFloat
from xent_metrics.hosts.lm_eval.upstream import sample_line

__all__ = ["save_samples"]

log = logging.getLogger(__name__)


def save_samples(path: Path, samples: Sequence[dict[str, Any]], save: Callable[[], None]) -> None:
    """Save samples to where their results say.

    If the Parquet file can't be written, a warning says so, and the samples are saved as JSON lines. If these can't be either,
    lm-eval warns, and goes on.

    Args:
        path: the file for JSON lines; its folder may not exist yet.
        samples: as lm-eval passes them on; changed in place.
        save: saves JSON lines.
    """
    for sample in samples:
        sample["filtered_resps"] = _plain(sample["filtered_resps"])
    if any(result.in_parquet for sample in samples for _, result in _listed(sample)):
        in_parquet = path.with_suffix(".parquet")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_parquet_samples(in_parquet, _documents(samples))
            return
        except (OSError, XentMetricsError, ValueError, OverflowError) as error:
            log.warning("%s can't be written, so that the samples are saved as JSON lines: %s", in_parquet, error)
    save()


def _documents(samples: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Results]]:
    for sample in samples:
        results = {place: result.listed() for place, result in _listed(sample)}
        yield sample_line({**sample, "resps": _plain(sample["resps"])}), results


def _listed(sample: dict[str, Any]) -> Iterator[tuple[int, LoggedFloat]]:
    """The results that list their tokens, by place."""
    return ((place, each) for place, each in enumerate(_leaves(sample["resps"])) if isinstance(each, LoggedFloat))


def _leaves(results: Any) -> Iterator[Any]:
    if isinstance(results, list | tuple):
        for each in results:
            yield from _leaves(each)
    else:
        yield results


def _plain(results: Any) -> Any:
    """The results without their tokens."""
    if isinstance(results, list | tuple):
        return [_plain(each) for each in results]
    return float(results) if isinstance(results, LoggedFloat) else results
