"""The documents that lm-eval logs with --log_samples, JSON objects in lines or in Parquet, read as `Sample`.

One pass over the file keeps of each document where its line begins, which document it is, and its sums. Everything else is read
again when it is asked for, so that memory doesn't grow with texts and tokens.

Files may be damaged, or written by somebody else: what isn't a document of this format is skipped and named.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, overload

import numpy as np

from xent_metrics.analysis.json_lines import JsonLines
from xent_metrics.analysis.logged import Tokens, gold_in, parse_json, restored, tokens_in
from xent_metrics.analysis.logged_sums import SUMS_SUFFIXES, SumsColumn
from xent_metrics.analysis.parquet_samples import ParquetSamples, Results
from xent_metrics.analysis.progress import progress_bar
from xent_metrics.analysis.results_file import NO_FILTER
from xent_metrics.analysis.sums_by_document import SumsByDocument
from xent_metrics.sums.metric import TokenMetric

__all__ = ["Keys", "Sample", "Samples", "Source", "keys_of", "read_samples", "samples_at"]

_PLACEHOLDER_ID = -1  # the doc_id that a process without documents logs

#: A file of samples: what is asked of it is the same in both formats.
Source = JsonLines | ParquetSamples
#: A 64-bit hash of each document. Two of a million different documents share one with a probability of 3e-8.
Keys = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Sample:
    """One document as lm-eval logged it.

    `key` identifies the same document in another run; `raw` is the logged JSON object. Tokens that were logged in columns
    beside it are read when they are asked for: `results` gives them by place, and `logged` is the object with them.
    """

    key: str
    raw: Mapping[str, Any]
    results: Callable[[], Results] = dict

    @cached_property
    def logged(self) -> Mapping[str, Any]:
        """The JSON object with the tokens of its results, wherever they were logged."""
        return restored(self.raw, self.results())

    @cached_property
    def tokens(self) -> Tokens | None:
        """The document's tokens (the gold continuation's for a question); None if they were not logged."""
        return tokens_in(self.logged)

    def sums(self, name: str) -> Mapping[str, Any] | None:
        """The named sums of our metric `name`, each a number or a list of numbers; None if they were not logged."""
        logged = (self.raw.get(f"{name}{suffix}") for suffix in SUMS_SUFFIXES)
        return next((found for found in logged if isinstance(found, dict)), None)

    def all_sums(self) -> Iterator[Mapping[str, Any]]:
        """The logged sums of each metric."""
        named = (key.removesuffix(suffix) for key in self.raw for suffix in SUMS_SUFFIXES if key.endswith(suffix))
        yield from (found for name in named if (found := self.sums(name)))


class Samples(Sequence[Sample]):
    """The documents of one filter in a file of samples, in its order, each read when it is asked for.

    Attributes:
        source: the file.
        addresses: where the file has each document, ``(D,)``, rising.
        keys: the hash of each document, ``(D,)``; equal for the same document in another run.
        golds: which of a document's results is the gold one, ``(D,)``; read only if the tokens are in columns.
        sums: each metric's sums by its key; None if a document lacks them.
        summed: the names of metrics with logged sums.
    """

    def __init__(self, source: Source, lines: _Lines, kept: np.ndarray[Any, Any]) -> None:
        self.source = source
        self.addresses = _taken(lines.addresses, np.int64, kept)
        hashes = _taken(lines.hashes, np.int64, kept)
        self._numbers = _occurrences(hashes)
        self.keys = _numbered(hashes, self._numbers)
        self.golds = _taken(lines.golds, np.int32, kept) if source.has_columns else np.zeros(0, np.int32)
        self.sums: dict[str, SumsByDocument | None] = {key: column.taken(kept) for key, column in lines.columns.items()}
        self.summed = frozenset(lines.summed)

    def __len__(self) -> int:
        return len(self.addresses)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> list[Sample]: ...
    def __getitem__(self, place: int | slice) -> Sample | list[Sample]:
        if isinstance(place, slice):
            return list(self.at(range(len(self))[place]))
        return next(self.at([range(len(self))[place]]))

    def __iter__(self) -> Iterator[Sample]:
        return self.at(range(len(self)))

    def at(self, places: Sequence[int]) -> Iterator[Sample]:
        """The documents at these places; it is fastest if they rise."""
        addresses = [int(self.addresses[place]) for place in places]
        for place, address, text in zip(places, addresses, self.source.at(addresses), strict=True):
            raw = parse_json(text)
            yield Sample(f"{_name(raw)} {self._numbers[place]}", raw, partial(self.source.results, address))


def samples_at(samples: Sequence[Sample], places: Sequence[int]) -> Iterator[Sample]:
    """The documents at these places, of a file or of a list."""
    return samples.at(places) if isinstance(samples, Samples) else (samples[place] for place in places)


def keys_of(samples: Sequence[Sample]) -> Keys:
    """The hash of each document, ``(D,)``."""
    if isinstance(samples, Samples):
        return samples.keys
    names, numbers = zip(*(_name_and_number(sample.key) for sample in samples), strict=True) if samples else ((), ())
    hashes = np.array([_hash(name) for name in names], dtype=np.int64)
    return _numbered(hashes, np.array(numbers, dtype=np.int64))


def _name_and_number(key: str) -> tuple[str, int]:
    name, _, number = key.rpartition(" ")
    return (name, int(number)) if name and number.isdecimal() else (key, 1)


@dataclass
class _Lines:
    """What is kept of the lines of one filter, by column."""

    columns: Mapping[str, SumsColumn]
    addresses: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[int] = field(default_factory=lambda: array("q"))
    hashes: array[int] = field(default_factory=lambda: array("q"))
    identities: array[int] = field(default_factory=lambda: array("q"))  # of a document that is logged once
    golds: array[int] = field(default_factory=lambda: array("i"))
    summed: set[str] = field(default_factory=set)

    def add(self, address: int, number: int, raw: Mapping[str, Any], name: str) -> None:
        doc_id = raw.get("doc_id")
        self.addresses.append(address)
        self.numbers.append(number)
        self.hashes.append(_hash(name))
        self.identities.append(_hash(f"{doc_id} {name}" if doc_id is not None else f"line {number}"))
        for column in self.columns.values():
            column.add(raw)
        for key, value in raw.items():
            if isinstance(value, dict) and key.endswith(SUMS_SUFFIXES):
                self.summed.add(key.rpartition("_")[0])

    def repeated(self) -> tuple[np.ndarray[Any, Any], Iterator[tuple[int, int]]]:
        """Which lines are the first of their document, and for each of the others its number and that of the first."""
        identities, numbers = np.asarray(self.identities), np.asarray(self.numbers)
        _, first, which = np.unique(identities, return_index=True, return_inverse=True)
        kept = first[which] == np.arange(len(identities))
        return kept, ((int(numbers[i]), int(numbers[first[which[i]]])) for i in np.flatnonzero(~kept))


def read_samples(
    source: Source, task: str, problems: list[str], metrics: Mapping[str, TokenMetric] | None = None
) -> dict[str, Samples]:
    """The documents in a file of samples by their filter; those that can't be read, or come twice, are skipped and named.

    Args:
        source: the file.
        task: the task's name, for `problems`.
        problems: gets a sentence for each document that is skipped.
        metrics: the metrics whose sums are read, by the name in the results and the filter, as in `TaskRun`.
    """
    by_filter: dict[str, _Lines] = {}
    for number, address, raw, name in _documents(source, task, problems):
        filter_name = str(raw.get("filter", NO_FILTER))
        if filter_name not in by_filter:
            by_filter[filter_name] = _Lines(_columns(metrics or {}, filter_name))
        by_filter[filter_name].add(address, number, raw, name)
        if source.has_columns:
            by_filter[filter_name].golds.append(gold_in(raw))
    found = {}
    for filter_name, lines in by_filter.items():
        kept, repeated = lines.repeated()
        problems += (
            f"{_skipped(source, task, number)}: it repeats the document of {source.row} {first}"
            for number, first in repeated
        )
        found[filter_name] = Samples(source, lines, kept)
    return found


def _skipped(source: Source, task: str, number: int) -> str:
    return f"task {task}: {source.row} {number} of {source.path.name} is skipped"


def _documents(source: Source, task: str, problems: list[str]) -> Iterator[tuple[int, int, dict[str, Any], str]]:
    """The number of each document, where it is, its JSON object and its name."""
    done = 0
    with progress_bar(f"Reading {source.path.name}", source.size, source.unit) as bar:
        for number, (address, text) in enumerate(source.documents(), 1):
            bar.update(address - done)
            done = address
            try:
                raw = parse_json(text)
                name = _name(raw)
            except (ValueError, KeyError, TypeError) as error:
                problems.append(f"{_skipped(source, task, number)}: {_why(error)}")
                continue
            if raw.get("doc_id") != _PLACEHOLDER_ID:
                yield number, address, raw, name


def _name(raw: Any) -> str:
    return f"{raw['doc_hash']} {raw['target_hash']}"


def _columns(metrics: Mapping[str, TokenMetric], filter_name: str) -> dict[str, SumsColumn]:
    """The columns for the metrics of this filter, and for those without one."""
    parts = {key: key.partition(",") for key in metrics}
    return {key: SumsColumn(metrics[key], name) for key, (name, _, own) in parts.items() if own in ("", filter_name)}


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return "it is cut off or not JSON" if isinstance(error, ValueError) else "it is not a document"


def _hash(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _taken(values: array[int], dtype: Any, kept: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    found = np.frombuffer(values, dtype=dtype)
    return found if kept.all() else found[kept]


def _occurrences(hashes: Keys) -> Keys:
    """1 for the first document with a hash, 2 for the second with the same …, ``(D,)``."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(hashes)])
    sizes = np.diff(np.append(begins, len(hashes)))
    found = np.empty(len(hashes), dtype=np.int64)
    found[order] = np.arange(len(hashes)) - np.repeat(begins, sizes) + 1
    return found


def _numbered(hashes: Keys, numbers: Keys) -> Keys:
    """The hashes with the numbers of equal documents in them; as they are for the first."""
    odd = np.int64(0x9E3779B97F4A7C15 - 2**64)
    with np.errstate(over="ignore"):
        return hashes + odd * (numbers - 1)
