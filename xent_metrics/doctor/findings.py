"""Findings: what is wrong, or worth knowing, where it is, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["SEVERITIES", "Finding", "Severity", "counted"]

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        kind: a short name that stays the same, such as ``dropped-metric``.
        place: the file, task, run or part of the installation.
        text: a sentence that says what is wrong and how to fix it.
        severity: "error" for what fails or gives no value, "warning" for values that may not be what they seem, "note" for
            what is good to know.
        mend: changes the content of the YAML, given as a dict, so that the finding goes away; None if nobody but its author
            knows how.
    """

    kind: str
    place: str
    text: str
    severity: Severity
    mend: Callable[[Any], None] | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """A record for programs."""
        named = {"kind": self.kind, "place": self.place, "text": self.text, "severity": self.severity}
        return named | {"mendable": self.mend is not None}


def counted(findings: Sequence[Finding]) -> str:
    """The number of findings of each severity, in words.

    >>> counted([Finding("threads", "torch", "4 threads", "note")])
    '0 errors, 0 warnings, 1 note'
    """
    found = Counter(finding.severity for finding in findings)
    return ", ".join(f"{found[each]} {each}{'' if found[each] == 1 else 's'}" for each in SEVERITIES)
