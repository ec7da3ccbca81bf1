"""What may run code is where SECURITY.md says it is, and nowhere else: looked up in the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache

import pytest
from support.source import ROOT

#: Calls that run what they read, with the modules that may make them, on what they pickled themselves.
CALLS = {
    "pickle.loads": {"xent_metrics/testing/promises.py", "xent_metrics/testing/processes.py"},
    "pickle.load": set(), "eval": set(), "exec": set(), "os.system": set(), "marshal.loads": set(),
    "yaml.unsafe_load": set(), "yaml.full_load": set(),
}  # fmt: skip
SOURCES = [path for folder in ("xent_metrics", "plugins") for path in sorted((ROOT / folder).rglob("*.py"))]


@cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """Every call in the package and its plugins: where, what, and the call itself."""
    return list(_calls())


def _calls() -> Iterator[tuple[str, str, ast.Call]]:
    for path in SOURCES:
        where = str(path.relative_to(ROOT))
        if "/tests/" not in where and "/test_" not in where:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield where, ast.unparse(node.func), node


@pytest.mark.parametrize("name", CALLS)
def test_nothing_that_is_read_is_run(name):
    assert {where for where, called, _ in calls() if called == name} <= CALLS[name]


def test_checkpoints_are_read_without_their_code():
    found = [node for _, called, node in calls() if called == "torch.load"]
    assert len(found) >= 3
    for node in found:
        assert {each.arg: ast.unparse(each.value) for each in node.keywords}.get("weights_only") == "True", ast.unparse(
            node
        )


def test_arrays_are_read_without_pickles():
    found = [node for _, called, node in calls() if called == "np.load"]
    assert found
    assert not [node for node in found if any(each.arg == "allow_pickle" for each in node.keywords)]


def test_no_command_goes_through_a_shell():
    assert not [node for _, _, node in calls() if any(each.arg == "shell" for each in node.keywords)]
