"""Mends YAMLs: makes the changes that findings hold, and keeps comments, order and all other lines as they are."""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xent_metrics.doctor.findings import Finding
from xent_metrics.errors import InvalidInputError, MissingExtraError
from xent_metrics.files import replacing

__all__ = ["mend_yaml"]

_NEVER_WRAP = 1_000_000  # characters


def mend_yaml(path: Path, findings: Sequence[Finding]) -> str:
    """Make the changes of a YAML that its findings hold, and return them as a unified diff; empty if there is nothing to do.

    A change of what the YAML includes from another file isn't made.

    Args:
        path: the YAML.
        findings: what `check_yaml` found in it.

    Raises:
        MissingExtraError: ruamel.yaml isn't installed.
        InvalidInputError: the lines that change can't be told from others, or a comment would be lost.
    """
    if find_spec("ruamel") is None or find_spec("ruamel.yaml") is None:
        raise MissingExtraError("--write needs ruamel.yaml: pip install 'xent-metrics[doctor]'")
    if not any(finding.mend for finding in findings):
        return ""  # that it isn't YAML at all, say, is a finding
    text = path.read_text(encoding="utf-8")
    content, unchanged = _load(text), _dump(_load(text), text)
    for finding in findings:
        _change(content, finding)
    changed = _dump(content, text)
    if changed == unchanged:
        return ""
    lines = [each.splitlines(keepends=True) for each in (text, unchanged, changed)]
    mended = list(_merged(*lines))
    lost = {line.strip() for line in lines[0] if line.lstrip().startswith("#")} - {line.strip() for line in mended}
    if len(lines[0]) != len(lines[1]) or lost or _dump(_load("".join(mended)), text) != changed:
        raise InvalidInputError(f"{path}: its changes would touch other lines or comments, too; make them by hand")
    with replacing(path) as new:
        new.write_text("".join(mended), encoding="utf-8")
    return "".join(difflib.unified_diff(lines[0], mended, fromfile=str(path), tofile=str(path)))


def _change(content: Any, finding: Finding) -> None:
    if finding.mend is not None:
        try:
            finding.mend(content)
        except LookupError:  # it is in a file that this one includes
            return


def _load(text: str) -> Any:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    return yaml.load(text)


def _dump(content: Any, like: str) -> str:
    """The YAML of some content, indented as another text is."""
    from ruamel.yaml import YAML
    from ruamel.yaml.util import load_yaml_guess_indent

    yaml, stream = YAML(), io.StringIO()
    _, indent, offset = load_yaml_guess_indent(like)
    yaml.indent(mapping=2, sequence=indent or 2, offset=offset or 0)
    yaml.width = _NEVER_WRAP
    yaml.dump(content, stream)
    return stream.getvalue()


def _merged(text: Sequence[str], unchanged: Sequence[str], changed: Sequence[str]) -> Iterator[str]:
    """The changed lines, with the text's own in place of those that ruamel.yaml only writes in another way."""
    for kind, a, b, c, d in difflib.SequenceMatcher(None, unchanged, changed, autojunk=False).get_opcodes():
        yield from text[a:b] if kind == "equal" else changed[c:d]
