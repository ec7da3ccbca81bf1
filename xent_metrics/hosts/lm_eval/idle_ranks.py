"""A rank without documents, as `--limit 1` on two processes or a small task on many make: it gets a stand-in.

lm-eval deals documents out by rank. It raises on a rank that gets none, and the others wait for it. Here such a rank asks
the model about the first document as well, so that all ranks make as many collectives, and gives values whose sums are
zero: they change no value, and no standard error, in which a document without rows is no sample. In logged samples it
has the id −1.

Who syncs: lm-eval, as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lm_eval.api.task import ConfigurableTask

from ...errors import InvalidInputError

__all__ = ["StandIn", "StandsIn"]

_DOC_ID = -1


class StandIn(dict[str, Any]):
    """The document that a rank without documents stands in with."""


class StandsIn(ConfigurableTask):  # type: ignore[misc]  # lm-eval is untyped
    """A task of which a rank may have no document; `process_results` must give sums of zero for a `StandIn`."""

    _idle = False

    def build_all_requests(
        self, *, rank: int = 0, world_size: int = 1, limit: int | None = None, samples: Any = None, **options: Any
    ) -> None:
        """lm-eval's own; on a rank without documents, the first document's requests."""
        documents = len(samples) if samples else min(int(limit) if limit else len(self.eval_docs), len(self.eval_docs))
        if 0 < documents < world_size:
            self._demand_sums(documents, world_size)
        self._idle = False
        if not (0 < documents <= rank):
            super().build_all_requests(rank=rank, world_size=world_size, limit=limit, samples=samples, **options)
            return
        first = samples[:1] if samples else None
        super().build_all_requests(rank=0, world_size=1, limit=None if first else 1, samples=first, **options)
        for instance in self.instances:
            instance.doc_id = _DOC_ID
        self._idle = True

    def _demand_sums(self, documents: int, world_size: int) -> None:
        """lm-eval's own metrics have no value that changes nothing: an error on every rank, before the model runs."""
        if self._metric_fn_list or callable(self.config.process_results):
            theirs = ", ".join(self._metric_fn_list) or "process_results"
            raise InvalidInputError(
                f"task {self.config.task}: {documents} documents can't be dealt out to {world_size} processes with lm-eval's "
                f"own {theirs} in its metric_list. Run at most {documents} processes, raise --limit, or leave {theirs} out"
            )

    def doc_iterator(self, **options: Any) -> Iterator[tuple[int, Any]]:
        """lm-eval's own; on a rank without documents, the stand-in."""
        if self._idle:
            return iter([(_DOC_ID, StandIn(self.instances[0].doc))])
        documents: Iterator[tuple[int, Any]] = super().doc_iterator(**options)
        return documents
