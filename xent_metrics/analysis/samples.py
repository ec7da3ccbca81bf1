"""The documents that lm-eval logs with --log_samples: one JSON object per line, read as `Sample`.

Files may be damaged, or written by somebody else: what isn't a document of this format is skipped and named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from xent_metrics.analysis.logged import Tokens, parse_json, tokens_in
from xent_metrics.analysis.run_metrics import LoggedMean
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.sums.ratio import RatioMetric

__all__ = ["Sample", "document_sums", "read_samples"]

#: What the name of a metric's sums ends with; the second one if `lm_eval.evaluate` was called by itself.
_SUMS_SUFFIXES = ("_sums", "_stderr")
_PLACEHOLDER_ID = -1  # the doc_id that a process without documents logs


@dataclass(frozen=True)
class Sample:
    """One document as lm-eval logged it.

    `key` identifies the same document in another run; `raw` is the logged JSON object.
    """

    key: str
    raw: Mapping[str, Any]

    @cached_property
    def tokens(self) -> Tokens | None:
        """The document's tokens (the gold continuation's for a question); None if they were not logged."""
        return tokens_in(self.raw)

    def sums(self, name: str) -> Mapping[str, Any] | None:
        """The named sums of our metric `name`, each a number or a list of numbers; None if they were not logged."""
        logged = (self.raw.get(f"{name}{suffix}") for suffix in _SUMS_SUFFIXES)
        return next((found for found in logged if isinstance(found, dict)), None)

    def all_sums(self) -> Iterator[Mapping[str, Any]]:
        """The logged sums of each metric."""
        named = (key.removesuffix(suffix) for key in self.raw for suffix in _SUMS_SUFFIXES if key.endswith(suffix))
        yield from (found for name in named if (found := self.sums(name)))


def document_sums(sample: Sample, name: str, metric: TokenMetric) -> Mapping[str, Any] | None:
    """A document's sums for `metric`: those we logged, or those that follow from what lm-eval logged under `name`.

    None if there are none, or if they aren't numbers in the metric's layout.
    """
    found = _logged_sums(sample, name, metric)
    shapes = {
        sum_name: tuple(value.shape) for sum_name, value in metric.unpack(torch.zeros(metric.layout.size)).items()
    }
    if found is None or any(_shape(found.get(sum_name)) != shape for sum_name, shape in shapes.items()):
        return None
    return found


def _logged_sums(sample: Sample, name: str, metric: TokenMetric) -> Mapping[str, Any] | None:
    value = sample.raw.get(name)
    if isinstance(metric, LoggedMean):
        return {"values": float(value), "documents": 1.0} if isinstance(value, int | float) else None
    if isinstance(metric, RatioMetric) and isinstance(value, list) and _shape(value) == (2,):
        return dict(zip(metric.ratio_names(), (-value[0], value[1]), strict=True))
    return sample.sums(name)


def _shape(value: Any) -> tuple[int, ...] | None:
    """() for a number, (n,) for a list of n numbers, None for anything else."""
    if isinstance(value, list):
        return (len(value),) if all(_shape(each) == () for each in value) else None
    return () if isinstance(value, int | float) else None


def read_samples(path: Path, task: str, problems: list[str]) -> Iterator[Sample]:
    """The documents in a samples file; lines that can't be read, or come twice, are skipped and added to `problems`."""
    if not path.is_file():
        problems.append(f"task {task}: no samples beside the results ({path.name}); evaluate with --log_samples")
        return
    seen: dict[str, int] = {}
    first_line: dict[str, int] = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                raw = parse_json(line)
                key = f"{raw['doc_hash']} {raw['target_hash']}"
                counted = f"{key} {raw.get('filter')}"
            except (ValueError, KeyError, TypeError) as error:
                problems.append(f"task {task}: line {number} of {path.name} is skipped: {_why(error)}")
                continue
            same = first_line.setdefault(f"{raw.get('doc_id')} {counted}", number)
            if raw.get("doc_id") is not None and same != number:  # lm-eval logs each document once per filter
                problems.append(
                    f"task {task}: line {number} of {path.name} is skipped: it repeats the document of line {same}"
                )
            elif raw.get("doc_id") != _PLACEHOLDER_ID:
                seen[counted] = seen.get(counted, 0) + 1  # equal documents are numbered
                yield Sample(f"{key} {seen[counted]}", raw)


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return "it is cut off or not JSON" if isinstance(error, ValueError) else "it is not a document"
