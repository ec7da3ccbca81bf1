"""What is known of an error: its code, and the cause, the cure and the example of its docstring."""

from __future__ import annotations

import difflib
import inspect
import re
from dataclasses import dataclass

from xent_metrics import errors
from xent_metrics.errors import InvalidInputError, XentMetricsError

__all__ = ["ErrorFacts", "all_errors", "error_facts", "find_error", "is_error"]


@dataclass(frozen=True)
class ErrorFacts:
    """What is known of a class of errors.

    Attributes:
        code: such as "E007".
        name: of the class.
        summary: what has happened.
        cause: how it comes to that.
        cure: what to do.
        example: a doctest that raises it.
    """

    code: str
    name: str
    summary: str
    cause: str
    cure: str
    example: str


def all_errors() -> list[type[XentMetricsError]]:
    """Every class of errors of this package, by code.

    >>> [error.code for error in all_errors()][:3]
    ['E000', 'E001', 'E002']
    """
    return sorted((getattr(errors, name) for name in errors.__all__), key=lambda error: error.code)


def error_facts(error: type[XentMetricsError]) -> ErrorFacts:
    """Read what is known of an error from its docstring.

    >>> error_facts(InvalidInputError).cause.partition(",")[0]
    "Logits that aren't floats"
    """
    doc = inspect.getdoc(error) or ""
    summary, *_ = doc.split("\n\n")
    example = re.search(r"^>>>.*", doc, re.DOTALL | re.MULTILINE)
    return ErrorFacts(
        code=error.code,
        name=error.__name__,
        summary=" ".join(summary.split()),
        cause=_labelled("Cause", doc),
        cure=_labelled("Cure", doc),
        example=example[0] if example else "",
    )


def _labelled(label: str, doc: str) -> str:
    """The paragraph after a label, as a sentence."""
    found = re.search(rf"^{label}: (.+?)(?:\n\n|\Z)", doc, re.DOTALL | re.MULTILINE)
    text = " ".join(found[1].split()) if found else ""
    return text[:1].upper() + text[1:]


def is_error(asked: str) -> bool:
    """True if this looks like a code or the name of an error, rather than that of a metric.

    >>> is_error("e12"), is_error("MissingScoreError"), is_error("cross_entropy")
    (True, True, False)
    """
    return bool(re.fullmatch(r"[Ee]\d+|[A-Z]\w*", asked))


def find_error(asked: str) -> type[XentMetricsError]:
    """The class with this code or name, in any case.

    Raises:
        InvalidInputError: there is none; the message has the nearest.

    >>> find_error("e007").__name__
    'UnknownMetricError'
    """
    known = {key: error for error in all_errors() for key in (error.code, error.__name__)}
    by_lower = {key.lower(): error for key, error in known.items()}
    if asked.lower() in by_lower:
        return by_lower[asked.lower()]
    near = difflib.get_close_matches(asked, known, n=2)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    codes = [error.code for error in all_errors()]
    raise InvalidInputError(f"unknown error {asked!r}.{hint} Errors have the codes {codes[0]} to {codes[-1]}")
