"""Changes of a YAML's content, as functions of the content: a dict, or ruamel.yaml's, which keeps comments and order.

Each takes the content last, so that a finding can hold the change with its other arguments bound. A change raises a
LookupError if the content lacks what is to be changed, as when it is in another file that the YAML includes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = ["add_class", "one_near", "remove_keys", "rename_key", "set_value"]

_NEAR = 0.75  # how alike two names are, of 1, if one may be the other misspelt


def one_near(name: Any, known: Iterable[str]) -> str | None:
    """The only known name that is near to an unknown one; None if there are several, or if the name is known.

    >>> one_near("acc_nrom", ["acc", "acc_norm"])
    'acc_norm'
    """
    known = list(known)
    if not isinstance(name, str) or name in known:
        return None
    near = difflib.get_close_matches(name, known, n=2, cutoff=_NEAR)
    return near[0] if len(near) == 1 else None


def set_value(path: tuple[Any, ...], value: Any, content: Any) -> None:
    """Replace the value at a path of keys and indices."""
    mapping = _at(content, path[:-1])
    if path[-1] not in mapping:
        raise KeyError(path[-1])
    mapping[path[-1]] = value


def remove_keys(path: tuple[Any, ...], keys: tuple[str, ...], content: Any) -> None:
    """Remove keys from the mapping at a path, those of them that it has."""
    mapping = _at(content, path)
    for key in keys:
        mapping.pop(key, None)


def rename_key(path: tuple[Any, ...], old: str, new: str, content: Any) -> None:
    """Rename a key of the mapping at a path, which keeps its place."""
    mapping = _at(content, path)
    if old not in mapping:
        raise KeyError(old)
    comments = mapping.ca.items.get(old) if hasattr(mapping, "ca") else None
    place, value = list(mapping).index(old), mapping.pop(old)
    if hasattr(mapping, "insert"):
        mapping.insert(place, new, value)
        if comments is not None:
            mapping.ca.items[new] = comments
    else:
        mapping[new] = value


def add_class(function: str, content: Any) -> None:
    """Let a task be built by a class: ``class: !function …``, after the task's name."""
    from ruamel.yaml.comments import TaggedScalar

    content.insert(list(content).index("task") + 1, "class", TaggedScalar(function, tag="!function"))


def _at(content: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        content = content[step]
    return content
