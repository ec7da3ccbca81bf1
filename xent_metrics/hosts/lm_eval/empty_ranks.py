"""A rank without documents, as `--limit 1` on two processes or a small task on many make: it gets a stand-in.

lm-eval deals documents out by rank. It raises on a rank that gets none, and the others wait for it. Here such a rank asks
the model about the first document as well, so that all ranks make as many collectives, and gives values that the
aggregations leave out, lm-eval's own and ours: values, standard errors and counts are those of the documents. In logged
samples it has the id −1.

Who syncs: lm-eval, as ever.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

__all__ = ["EmptyRankTask", "NoValue", "PlaceholderDoc"]

_DOC_ID = -1


class PlaceholderDoc(dict[str, Any]):
    """The document that a rank without documents stands in with."""


class NoValue(float):
    """What a stand-in has for one of lm-eval's metrics: nan to JSON, and nothing to an aggregation."""

    def __new__(cls) -> NoValue:
        return super().__new__(cls, "nan")

    def __reduce__(self) -> tuple[Any, ...]:
        return NoValue, ()


class WithoutPlaceholders:
    """An aggregation, which first takes stand-ins' values out of the list that it is given.

    Out of the list itself, for lm-eval counts its values and takes their standard error afterwards. Which standard error
    it looks up by the aggregation: this one is equal to the one within.
    """

    def __init__(self, aggregate: Callable[[list[Any]], Any]) -> None:
        self.aggregate = aggregate
        self.__name__ = getattr(aggregate, "__name__", type(aggregate).__name__)

    def __call__(self, values: list[Any]) -> Any:
        values[:] = [value for value in values if not _is_nothing(value)]
        return self.aggregate(values)

    def __eq__(self, other: object) -> bool:
        return self.aggregate == (other.aggregate if isinstance(other, WithoutPlaceholders) else other)

    def __hash__(self) -> int:
        return hash(self.aggregate)


def _is_nothing(value: Any) -> bool:
    """Whether it is a stand-in's: lm-eval's metrics have none, ours have sums of nothing."""
    sums = getattr(value, "sums", None)
    return isinstance(value, NoValue) or (sums is not None and not bool(sums.any()))


class EmptyRankTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval is untyped
    """A task of which a rank may have no document; `process_results` gives a `PlaceholderDoc` a `NoValue` or sums of zero."""

    _idle = False  # this rank
    _some_idle = False  # or another

    def build_all_requests(
        self, *, rank: int = 0, world_size: int = 1, limit: int | None = None, samples: Any = None, **options: Any
    ) -> None:
        """lm-eval's own; on a rank without documents, the first document's requests."""
        documents = len(samples) if samples else min(int(limit) if limit else len(self.eval_docs), len(self.eval_docs))
        self._some_idle = 0 < documents < world_size
        self._idle = False
        if not 0 < documents <= rank:
            super().build_all_requests(rank=rank, world_size=world_size, limit=limit, samples=samples, **options)
            return
        first = samples[:1] if samples else None
        super().build_all_requests(rank=0, world_size=1, limit=None if first else 1, samples=first, **options)
        for instance in self.instances:
            instance.doc_id = _DOC_ID
        self._idle = True

    def doc_iterator(self, **options: Any) -> Iterator[tuple[int, Any]]:
        """lm-eval's own; on a rank without documents, the stand-in."""
        if self._idle:
            return iter([(_DOC_ID, PlaceholderDoc(self.instances[0].doc))])
        documents: Iterator[tuple[int, Any]] = super().doc_iterator(**options)
        return documents

    def aggregation(self) -> dict[str, Any]:
        """lm-eval's own, without stand-ins; the mean, as lm-eval has it, of what names no aggregation."""
        found: dict[str, Any] = super().aggregation()
        if not self._some_idle:
            return found
        without = {name: WithoutPlaceholders(aggregate) for name, aggregate in found.items()}
        return defaultdict(lambda: WithoutPlaceholders(mean), without)
