"""The architecture, held: rooms import downwards only, nobody imports in circles or reaches into another's private names."""

from __future__ import annotations

import pytest
from support.source import (
    PACKAGE,
    circles,
    code_lines,
    functions,
    imports,
    module_name,
    private_names,
    private_uses,
    sources,
)

#: From the ground up: a module imports its own room and rooms of the lines above it.
ROOMS = """
errors version hookspecs
scoring plots samplers
sums metrics plugins
wrappers collection functional task_folders analysis
hosts testing cli demo
"""
ORDER = {room: place for place, room in enumerate(ROOMS.split())}
SOURCES = sources()
ARROWS = {name: set(imports(tree, set(SOURCES))) for name, tree in SOURCES.items()}


def room(module: str) -> str:
    return module.partition(".")[0]


def upward(arrows: dict[str, set[str]]) -> list[str]:
    """Imports of a room that stands later in the order; the package itself, which may import all, is imported by none."""
    return [
        f"{module} imports {other or 'xent_metrics'}"
        for module, others in arrows.items()
        for other in sorted(others)
        if module and (not other or ORDER[room(other)] > ORDER[room(module)])
    ]


def test_every_room_has_its_place():
    assert {room(module) for module in SOURCES if module} == set(ORDER)


def test_no_module_imports_in_a_circle():
    assert circles(ARROWS) == []


def test_no_module_imports_upwards():
    assert upward(ARROWS) == []


def test_planted_circles_and_upward_imports_are_found(tmp_path):
    files = {
        "__init__": "",
        "errors": "def f():\n    from xent_metrics.metrics import a  # lazy",
        "metrics/__init__": "",
        "metrics/a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import xent_metrics.metrics.b",
        "metrics/b": "from xent_metrics.errors import f",
        "sums": "import xent_metrics.errors",
    }
    for name, text in files.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    planted = sources(tmp_path)
    arrows = {name: set(imports(tree, set(planted))) for name, tree in planted.items()}
    assert circles(arrows) == [["errors", "metrics.a", "metrics.b"]]
    assert upward(arrows) == ["errors imports metrics.a"]


@pytest.mark.parametrize("name", SOURCES)
def test_no_function_is_long(name):
    text = _text(name)
    long = {f.name: code_lines(f, text) for f in functions(SOURCES[name]) if code_lines(f, text) > 30}
    assert not long


@pytest.mark.parametrize("name", SOURCES)
def test_no_module_reaches_into_anothers_private_names(name):
    own = private_names(SOURCES[name])
    reached = [
        f"{name}:{line}: {attr}"
        for line, attr, of_self in private_uses(SOURCES[name])
        if attr not in own and not of_self
    ]
    assert not reached


def _text(name: str) -> str:
    return next(path.read_text() for path in PACKAGE.rglob("*.py") if module_name(path) == name)
