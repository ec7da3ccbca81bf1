"""The ids and losses of a task's tokens as columns, document after document, in chunks: what plots and sort orders need.

Parquet has them as columns already. Those in JSON are parsed once, into a temporary file, so that they can be gone over
again without holding them in memory.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import IO, Any, NamedTuple

import numpy as np

from xent_metrics.analysis.parquet_samples import ParquetSamples, ResultTokens
from xent_metrics.analysis.samples import Sample, Samples

__all__ = ["TokenChunk", "TokenColumns"]

_CHUNK_TOKENS = 2**18
_Array = np.ndarray[Any, Any]


class TokenChunk(NamedTuple):
    """The tokens of some documents, those of the gold continuation for a question.

    Attributes:
        places: of the documents among the samples, ``(D,)``; documents without tokens are left out.
        sizes: how many tokens each has, ``(D,)``.
        ids: of the tokens, ``(T,)`` int64.
        nll: of the tokens, ``(T,)`` float64, in nats.
    """

    places: _Array
    sizes: _Array
    ids: _Array
    nll: _Array


class TokenColumns:
    """The tokens of samples in chunks, as often as they are asked for.

    >>> list(TokenColumns([Sample("d t 1", {"resps": [["-1.5"]]})]))
    []
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __iter__(self) -> Iterator[TokenChunk]:
        samples = self._samples
        if isinstance(samples, Samples) and isinstance(samples.source, ParquetSamples):
            chunks = (_of_golds(samples, found) for found in samples.source.tokens())
            return (chunk for chunk in chunks if len(chunk.places))
        return _replayed(self._parsed)

    def __bool__(self) -> bool:
        return next(iter(self), None) is not None

    @cached_property
    def _parsed(self) -> IO[bytes]:
        """A temporary file with the chunks of samples that hold their tokens."""
        file = tempfile.TemporaryFile()  # noqa: SIM115  # open for as long as the columns are there
        weakref.finalize(self, file.close)
        for chunk in _parsed_chunks(self._samples):
            for column in chunk:
                np.save(file, column)
        return file


def _parsed_chunks(samples: Sequence[Sample]) -> Iterator[TokenChunk]:
    places: list[int] = []
    sizes: list[int] = []
    ids: list[int] = []
    nll: list[float] = []

    def chunk() -> TokenChunk:
        return TokenChunk(np.array(places), np.array(sizes), np.array(ids, dtype=np.int64), np.array(nll))

    for place, sample in enumerate(samples):
        if tokens := sample.tokens:
            places.append(place)
            sizes.append(len(tokens))
            ids += tokens.ids
            nll += tokens.nll
        if len(ids) >= _CHUNK_TOKENS:
            yield chunk()
            for column in (places, sizes, ids, nll):
                column.clear()
    if places:
        yield chunk()


def _replayed(file: IO[bytes]) -> Iterator[TokenChunk]:
    end, at = file.seek(0, 2), 0
    while at < end:
        file.seek(at)  # others may read in between
        chunk = TokenChunk(*(np.load(file) for _ in range(4)))
        at = file.tell()
        yield chunk


def _of_golds(samples: Samples, found: ResultTokens) -> TokenChunk:
    """Of each row that is among the samples, the gold result's tokens, or the last one's before it."""
    begin, end = np.searchsorted(samples.addresses, (found.first, found.first + len(found.results)))
    places = np.arange(begin, end)
    rows = samples.addresses[places] - found.first
    places, rows = places[found.results[rows] > 0], rows[found.results[rows] > 0]
    begins = np.cumsum(found.results) - found.results
    results = begins[rows] + np.minimum(samples.golds[places], found.results[rows] - 1)
    filled = found.sizes[results] > 0
    places, results = places[filled], results[filled]
    sizes = found.sizes[results].astype(np.int64)
    starts = np.cumsum(found.sizes, dtype=np.int64)[results] - sizes
    tokens = np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
    return TokenChunk(places, sizes, found.ids[tokens].astype(np.int64), found.nll[tokens].astype(np.float64))
