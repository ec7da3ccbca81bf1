"""The architecture, held: rooms import from earlier ones, nobody imports in circles or uses another's private names."""

from __future__ import annotations

import ast
import re

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

#: A module imports from its own room and from earlier ones.
ROOMS = """
errors files version hookspecs
scoring plots samplers
sums metrics plugins
wrappers collection functional task_folders analysis
hosts testing explain doctor view cli demo
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
    """But in an adapter: a function whose docstring says of which host, and which version, the names were read.

    lm-eval's are all in one file, so that there is one place to look when lm-eval changes.
    """
    own, tree = private_names(SOURCES[name]), SOURCES[name]
    adapters = [range(f.lineno, (f.end_lineno or 0) + 1) for f in functions(tree) if _is_adapter(f, name)]
    reached = [
        f"{name}:{line}: {attr}"
        for line, attr, of_self in private_uses(tree)
        if attr not in (OURS if of_self else own)
        and attr not in PUBLIC
        and not any(line in lines for lines in adapters)
    ]
    assert not reached


def test_lm_evals_private_modules_are_imported_by_nobody():
    private = re.compile(r"^\s*(?:from|import) lm_eval\S*\._[a-z]", re.MULTILINE)
    assert [name for name in SOURCES if private.search(_text(name))] == []


#: Where lm-eval's private names are. What classes override is tested in tests/hosts/lm_eval/test_upstream.py.
LM_EVAL = "hosts.lm_eval.upstream"
#: Underscore names that are no secrets: a namedtuple's method, an operator of torch's.
PUBLIC = {"_replace", "_to_copy"}
#: What is ours when a method reads it of itself: a base class of ours may have it.
OURS = {name for tree in SOURCES.values() for name in private_names(tree)}


def _is_adapter(function: ast.FunctionDef | ast.AsyncFunctionDef, module: str) -> bool:
    """``…, read in Lightning 2.6 …``: the docstring names the version."""
    hosts = "Lightning|torch|torchmetrics|transformers|accelerate" + "|lm-eval" * (module == LM_EVAL)
    return bool(re.search(rf"\b({hosts}) \d+\.\d+", ast.get_docstring(function) or ""))


def _text(name: str) -> str:
    return next(path.read_text() for path in PACKAGE.rglob("*.py") if module_name(path) == name)
