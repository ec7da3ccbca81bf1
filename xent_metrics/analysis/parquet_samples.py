"""Samples with their tokens in a Parquet file, in place of lm-eval's JSON lines: ``log_tokens=parquet``.

A row is a document under one filter, and a list in it holds the tokens of all its results, one after the other:

    sample       the line that lm-eval would write, in which results are plain numbers
    place        which of the strings in its `resps`, counted through, each result that lists tokens is
    num_tokens   how many of the tokens each of these results has
    text  id  nll  confidence  correct  num_bytes  invalid       of each token, as in JSON; null where none was logged
    alternatives  alternatives_per_mille                         of each token, its likeliest texts and their probabilities;
                 of the first, which is nearly always the confidence, how far its probability is above that

Floats have the type of the scores, bit for bit. Files are read one row group at a time, and of it only the columns needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xent_metrics.analysis.logged import Alternatives, TokenList
from xent_metrics.errors import InvalidInputError, MissingExtraError
from xent_metrics.files import replacing

__all__ = ["ParquetSamples", "ResultTokens", "Results", "pyarrow", "write_parquet_samples"]

_FIELDS = ("text", "id", "nll", "confidence", "correct", "num_bytes", "invalid")
_REQUIRED = ("text", "id", "nll")
_ALTERNATIVES = ("alternatives", "alternatives_per_mille")
_TOKENS = ["place", "num_tokens", *_FIELDS, *_ALTERNATIVES]
_WORDS = ["text.list.element", "alternatives.list.element.list.element"]
#: Split into their bytes these compress better: the upper bytes are alike.
_SPLIT = [
    f"{name}.list.element" for name in ("id", "nll", "confidence", "num_bytes", "alternatives_per_mille.list.element")
]
_GROUP_TOKENS = 2**18  # in a row group: what is in memory at once
_DOCUMENT = 64  # tokens that a document counts for

#: The results of a document that list their tokens, by place: as in JSON, but without their loglikelihood.
Results = Mapping[int, Mapping[str, Any]]


def pyarrow() -> Any:
    """The package, with `pyarrow.parquet`.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pyarrow as found
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("samples in Parquet need pyarrow: pip install 'xent-metrics[parquet]'") from error
    return found


def _schema(dtype: str) -> Any:
    pa = pyarrow()
    floats = {"float32": pa.float32(), "float64": pa.float64()}[dtype]
    of_tokens = {
        "text": pa.string(), "id": pa.int32(), "nll": floats, "confidence": floats, "correct": pa.bool_(),
        "num_bytes": pa.int32(), "invalid": pa.bool_(), "alternatives": pa.list_(pa.string()),
        "alternatives_per_mille": pa.list_(pa.int16()),
    }  # fmt: skip
    lists = {"place": pa.int32(), "num_tokens": pa.int32(), **of_tokens}
    return pa.schema({"sample": pa.string(), **{name: pa.list_(kind) for name, kind in lists.items()}})


# Writing.


def write_parquet_samples(path: Path, documents: Iterable[tuple[str, Results]]) -> None:
    """Write documents, given as their JSON with plain numbers and the results that list tokens.

    Raises:
        MissingExtraError: pyarrow is not installed.
        InvalidInputError: scores of several types.
    """
    pa = pyarrow()
    groups = _groups(documents)
    first = next(groups, [])
    shared = _shared(next((each for _, results in first for each in results.values() if each["tokens"]), {}))
    schema = _schema(shared["dtype"]).with_metadata({"xent_metrics": json.dumps(shared)})
    options = {
        "compression": "zstd",
        "compression_level": 6,
        "use_dictionary": _WORDS,
        "use_byte_stream_split": _SPLIT,
        "write_page_checksum": True,
    }
    with replacing(path) as new, pa.parquet.ParquetWriter(new, schema, **options) as writer:
        for group in (first, *groups):
            columns = _columns(group, shared)
            arrays = [pa.array(columns[field.name], field.type) for field in schema]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _shared(result: Mapping[str, Any]) -> dict[str, Any]:
    """What is the same for all results of a run."""
    return {"dtype": result.get("dtype", "float32"), "vocab_size": result.get("vocab_size")}


def _groups(documents: Iterable[tuple[str, Results]]) -> Iterator[list[tuple[str, Results]]]:
    """Documents for one row group each."""
    group: list[tuple[str, Results]] = []
    size = 0
    for document in documents:
        group.append(document)
        size += _DOCUMENT + sum(len(result["tokens"]) for result in document[1].values())
        if size >= _GROUP_TOKENS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _columns(group: Sequence[tuple[str, Results]], shared: Mapping[str, Any]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in ("sample", *_TOKENS)}
    for sample, results in group:
        if other := [each for each in results.values() if each["tokens"] and _shared(each) != shared]:
            raise InvalidInputError(f"expected scores of {shared} in all documents; got {_shared(other[0])}")
        tokens = [token for result in results.values() for token in result["tokens"]]
        columns["sample"].append(sample)
        columns["place"].append(list(results))
        columns["num_tokens"].append([len(result["tokens"]) for result in results.values()])
        for name in _FIELDS:
            columns[name].append([token.get(name) for token in tokens] if any(name in t for t in tokens) else None)
        likely = [token.get("alternatives", ()) for token in tokens]
        found = any(likely)
        columns["alternatives"].append([[text for text, _ in each] for each in likely] if found else None)
        columns["alternatives_per_mille"].append([_shares(token) for token in tokens] if found else None)
    return columns


def _shares(token: Mapping[str, Any]) -> list[int]:
    shares = [round(1000 * share) for _, share in token.get("alternatives", ())]
    return [shares[0] - _per_mille(token.get("confidence")), *shares[1:]] if shares else []


def _per_mille(confidence: float | None) -> int:
    """Of a confidence that is a probability; 0 for others and if it was not logged."""
    return round(1000 * confidence) if confidence is not None and 0 <= confidence <= 1 else 0


# Reading.


class ResultTokens(NamedTuple):
    """Ids and nll of the tokens of a row group's documents, laid end to end.

    Attributes:
        first: the row of the first document.
        results: how many results each document has, ``(D,)``.
        sizes: how many tokens each result has, ``(Σ results,)``.
        ids: of the tokens, ``(Σ sizes,)``.
        nll: of the tokens, in their own type.
    """

    first: int
    results: np.ndarray[Any, Any]
    sizes: np.ndarray[Any, Any]
    ids: np.ndarray[Any, Any]
    nll: np.ndarray[Any, Any]


class ParquetSamples:
    """The rows of a file, each found again by its number.

    What is damaged in it is reported once, and the documents there are left out, or have no tokens.

    Args:
        path: the file.
        report: takes a sentence about what can't be read.

    Raises:
        MissingExtraError: pyarrow is not installed.
        ValueError: it is no such file; the message says why.
    """

    row = "row"
    unit = "documents"
    has_columns = True  # the tokens can be read by column

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        pa = pyarrow()
        self.path, self._report = path, report
        try:
            self._file = _opened(path)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"it is cut off, still being written, or not Parquet ({_first_line(error)})") from error
        self._shared = self._check_schema()
        metadata = self._file.metadata
        self._ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
        self._damaged: set[tuple[int, str]] = set()
        self._texts: tuple[int, Any] = (-1, None)  # the row group that was read last
        self._tokens: tuple[int, dict[str, Any] | None] = (-1, None)

    def _check_schema(self) -> dict[str, Any]:
        found = self._file.schema_arrow
        wrong: list[list[str]] = [
            [f.name for f in _schema(dtype) if not _has(found, f)] for dtype in ("float32", "float64")
        ]
        if all(wrong):
            names = sorted(set(wrong[0]) & set(wrong[1])) or wrong[0]
            raise ValueError(f"it has another schema: no column {', '.join(names)} of the expected type")
        try:
            shared = json.loads((found.metadata or {})[b"xent_metrics"])
            return {"dtype": str(shared["dtype"]), "vocab_size": shared["vocab_size"]}
        except (KeyError, TypeError, ValueError):
            raise ValueError("it has another schema: its metadata don't name the scores' type") from None

    @property
    def size(self) -> int:
        """The end of the addresses."""
        return int(self._file.metadata.num_rows)

    def documents(self) -> Iterator[tuple[int, str | bytes]]:
        """The number of each row, and its sample."""
        for group in range(len(self._ends)):
            texts = self._try_to_read(group, "samples", ["sample"])
            if texts is not None:
                yield from enumerate(texts["sample"].to_pylist(), self._first_row(group))

    def at(self, addresses: Iterable[int]) -> Iterator[str | bytes]:
        """The samples of these rows; it is fastest if the numbers rise."""
        for row in addresses:
            group = self._group(row)
            if self._texts[0] != group:
                self._texts = group, self._read(group, ["sample"])["sample"]
            yield self._texts[1][row - self._first_row(group)].as_py()

    def results(self, address: int) -> Results:
        """The results of a row that list their tokens, by place."""
        group = self._group(address)
        if self._tokens[0] != group:
            self._tokens = group, self._try_to_read(group, "tokens", _TOKENS)
        columns = self._tokens[1]
        if columns is None:
            return {}
        row = address - self._first_row(group)
        places, sizes = (columns[name].row(row) or () for name in ("place", "num_tokens"))
        ends = np.cumsum(sizes, dtype=np.int64).tolist()
        return {
            place: {**self._shared, "tokens": TokenList(_TokenColumns(columns, row, range(end - size, end)))}
            for place, size, end in zip(places, sizes, ends, strict=True)
        }

    def tokens(self) -> Iterator[ResultTokens]:
        """The ids and nll of all tokens, row group by row group."""
        for group in range(len(self._ends)):
            found = self._try_to_read(group, "tokens", ["num_tokens", "id", "nll"])
            if found is not None:
                sizes, ids, nll = (found[name] for name in ("num_tokens", "id", "nll"))
                if not int(sizes.values.sum()) == len(ids.values) == len(nll.values):
                    self._name_damage(group, "tokens", "their lists have other lengths than num_tokens")
                else:
                    yield ResultTokens(
                        self._first_row(group), np.diff(sizes.offsets), sizes.values, ids.values, nll.values
                    )

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self._ends, row, side="right"))

    def _first_row(self, group: int) -> int:
        return int(self._ends[group - 1]) if group else 0

    def _try_to_read(self, group: int, what: str, names: list[str]) -> dict[str, Any] | None:
        try:
            return self._read(group, names)
        except (OSError, ValueError, pyarrow().ArrowException) as error:
            self._name_damage(group, what, _first_line(error))
            return None

    def _name_damage(self, group: int, what: str, why: str) -> None:
        if (group, what) not in self._damaged:
            self._damaged.add((group, what))
            rows = f"rows {self._first_row(group) + 1} to {int(self._ends[group])}"
            self._report(f"the {what} in {rows} of {self.path.name} can't be read: {why}")

    def _read(self, group: int, names: list[str]) -> dict[str, Any]:
        table = self._file.read_row_group(group, columns=names)
        columns = {name: table.column(name).combine_chunks() for name in names}
        return {name: column if name == "sample" else _Lists(column) for name, column in columns.items()}


def _opened(path: Path) -> Any:
    file = partial(pyarrow().parquet.ParquetFile, path, page_checksum_verification=True)
    try:
        return file(read_dictionary=_WORDS)
    except KeyError:  # it hasn't these columns
        return file()


class _Lists:
    """A column of lists as flat values with offsets."""

    def __init__(self, column: Any) -> None:
        self.nulls = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
        self.offsets = column.offsets.to_numpy()
        start, end = int(self.offsets[0]), int(self.offsets[-1])
        values = column.values.slice(start, end - start)
        self.offsets = self.offsets - start
        self.words: list[str] | None = None
        if hasattr(values, "offsets"):
            self.values: Any = _Lists(values)
        elif hasattr(values, "dictionary"):
            self.words, self.values = values.dictionary.to_pylist(), values.indices.to_numpy(zero_copy_only=False)
        else:
            self.values = values.to_numpy(zero_copy_only=False)

    def span(self, place: int) -> range | None:
        """Where the list at a place has its values; None for null."""
        if self.nulls is not None and self.nulls[place]:
            return None
        return range(int(self.offsets[place]), int(self.offsets[place + 1]))

    def at(self, span: range) -> list[Any]:
        """Some of the flat values."""
        found: list[Any] = self.values[span.start : span.stop].tolist()
        return found if self.words is None else [self.words[i] for i in found]

    def row(self, place: int) -> list[Any] | None:
        """The list at a place; None for null."""
        span = self.span(place)
        return None if span is None else self.at(span)


class _TokenColumns(Mapping[str, Sequence[Any]]):
    """The columns of a result's tokens that were logged, each made when it is asked for.

    Args:
        columns: of a row group.
        row: the document's.
        tokens: which of the document's tokens they are.
    """

    def __init__(self, columns: Mapping[str, _Lists], row: int, tokens: range) -> None:
        self._columns, self._row, self._tokens = columns, row, tokens

    def __getitem__(self, name: str) -> Sequence[Any]:
        if name not in self:
            raise KeyError(name)
        own = self._span(name)
        return self._alternatives(own) if name == "alternatives" else self._columns[name].at(own)

    def __contains__(self, name: object) -> bool:
        if name == "alternatives":
            spans = [self._columns[each].span(self._row) for each in (*_ALTERNATIVES, "confidence")]
            return (
                spans[0] is not None and spans[0] == spans[1] and (spans[2] is None or len(spans[2]) == len(spans[0]))
            )
        return name in _REQUIRED or (name in _FIELDS and self._columns[str(name)].span(self._row) is not None)

    def __iter__(self) -> Iterator[str]:
        return (name for name in (*_FIELDS, "alternatives") if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _span(self, name: str) -> range:
        return (self._columns[name].span(self._row) or range(0))[self._tokens.start : self._tokens.stop]

    def _alternatives(self, own: range) -> Alternatives:
        offsets = self._columns["alternatives"].values.offsets[own.start : own.stop + 1]
        return Alternatives(np.diff(offsets).tolist(), self._likeliest)

    def _likeliest(self, places: range) -> tuple[list[str], list[float]]:
        """The likeliest texts of some of the tokens, and their probabilities, laid end to end."""
        texts, shares = (self._columns[name].values for name in _ALTERNATIVES)
        own = self._span("alternatives")[places.start : places.stop]
        ends, others = (each.offsets[own.start : own.stop + 1] for each in (texts, shares))
        if not np.array_equal(ends, others):
            raise ValueError("its alternatives have other lengths than their probabilities")
        per_mille = shares.values[ends[0] : ends[-1]].astype(np.int64)
        if len(confidences := self._columns["confidence"].at(self._span("confidence")[places.start : places.stop])):
            filled = np.flatnonzero(np.diff(ends))
            taken = np.array([_per_mille(confidences[place]) for place in filled], dtype=np.int64)
            per_mille[ends[filled] - ends[0]] += taken
        return texts.at(range(ends[0], ends[-1])), (per_mille / 1000).tolist()


def _has(schema: Any, field: Any) -> bool:
    return field.name in schema.names and _plain(schema.field(field.name).type) == _plain(field.type)


def _plain(kind: Any) -> str:
    """A type by name, whether its texts are read as they are or by dictionary."""
    inner = getattr(kind, "value_type", None)
    return f"list of {_plain(inner)}" if hasattr(kind, "value_field") else str(inner if inner is not None else kind)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
