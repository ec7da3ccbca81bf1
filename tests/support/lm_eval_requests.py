"""Requests as the tasks of any supported lm-eval make them."""

from __future__ import annotations

import dataclasses
from typing import Any

from lm_eval.api.instance import Instance

_NAMED = "target" in {each.name for each in dataclasses.fields(Instance)}  # lm-eval 0.5


def request(kind: str, *arguments: Any, number: int = 0, doc: Any = None) -> Instance:
    """A request of the document `number`."""
    doc = {} if doc is None else doc
    if _NAMED:
        arguments = ("", *arguments) if kind == "loglikelihood_rolling" else arguments
        return Instance(kind, doc, arguments, "tiny", doc_id=number)
    return Instance(kind, doc, arguments, 0, metadata=("tiny", number, 1))
