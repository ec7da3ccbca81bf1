"""Lets a task run on more ranks than it has documents, as with `--limit 1` on two processes.

lm-eval distributes documents over ranks. It raises on a rank that gets none, while the others wait for it. Here such a
rank sends the model the first document's requests too, so that all ranks start equally many collectives. Its values are
placeholders, which no aggregation counts: values, standard errors and numbers of samples are those of the documents. In
logged samples the placeholder has the id −1.

Who syncs: lm-eval, as for any task.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from lm_eval.api.metrics import mean

from xent_metrics.hosts.lm_eval.documents import is_placeholder
from xent_metrics.hosts.lm_eval.upstream import configurable_task

__all__ = ["EmptyRankTask", "WithoutPlaceholders"]

_PLACEHOLDER_ID = -1


class WithoutPlaceholders:
    """An aggregation of the values that belong to documents.

    Placeholders are removed from the list itself, because lm-eval counts its values and takes their standard error later.
    Compares equal to the wrapped function, because lm-eval looks up the standard error by it.
    """

    def __init__(self, aggregate: Callable[[list[Any]], Any]) -> None:
        self.aggregate = aggregate
        self.__name__ = getattr(aggregate, "__name__", type(aggregate).__name__)

    def __call__(self, values: list[Any]) -> Any:
        values[:] = [value for value in values if not is_placeholder(value)]
        return self.aggregate(values)

    def __eq__(self, other: object) -> bool:
        return self.aggregate == (other.aggregate if isinstance(other, WithoutPlaceholders) else other)

    def __hash__(self) -> int:
        return hash(self.aggregate)


class EmptyRankTask(configurable_task()):  # type: ignore[misc]  # lm-eval is untyped
    """A task that may have no document for some ranks.

    On such a rank `on_empty_rank` is True once requests are built, and `process_results` must return placeholders.
    """

    on_empty_rank = False
    _some_rank_is_empty = False

    def build_all_requests(
        self, *, rank: int = 0, world_size: int = 1, limit: int | None = None, samples: Any = None, **options: Any
    ) -> None:
        """Build lm-eval's requests, or those of the first document on a rank without documents."""
        documents = len(samples) if samples else min(int(limit) if limit else len(self.eval_docs), len(self.eval_docs))
        self._some_rank_is_empty = 0 < documents < world_size
        self.on_empty_rank = False  # `doc_iterator` gives the documents while requests are built
        if not 0 < documents <= rank:
            super().build_all_requests(rank=rank, world_size=world_size, limit=limit, samples=samples, **options)
            return
        first = samples[:1] if samples else None
        super().build_all_requests(rank=0, world_size=1, limit=None if first else 1, samples=first, **options)
        for instance in self.instances:
            instance.doc_id = _PLACEHOLDER_ID
        self.on_empty_rank = True

    def doc_iterator(self, **options: Any) -> Iterator[tuple[int, Any]]:
        """Iterate over this rank's documents, or over the placeholder alone."""
        if self.on_empty_rank:
            return iter([(_PLACEHOLDER_ID, self.instances[0].doc)])
        documents: Iterator[tuple[int, Any]] = super().doc_iterator(**options)
        return documents

    def aggregation(self) -> dict[str, Any]:
        """Return the aggregation of each metric, which leaves placeholders out if any rank has them."""
        found = self.aggregation_by_name()
        if not self._some_rank_is_empty:
            return found
        # lm-eval takes the mean of a metric that names no aggregation.
        return defaultdict(
            lambda: WithoutPlaceholders(mean), {name: WithoutPlaceholders(each) for name, each in found.items()}
        )

    def aggregation_by_name(self) -> dict[str, Any]:
        """Return the aggregation of each metric over documents; a subclass adds its own."""
        found: dict[str, Any] = super().aggregation()
        return found
