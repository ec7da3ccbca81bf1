"""The package's own source, parsed: who imports whom, how long functions are, whose private names are touched."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import xent_metrics

PACKAGE = Path(xent_metrics.__file__).parent
ROOT = PACKAGE.parent


def module_name(path: Path, package: Path = PACKAGE) -> str:
    """``xent_metrics/sums/sync.py`` is ``sums.sync``; the package itself is the empty name."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(package: Path = PACKAGE) -> dict[str, ast.Module]:
    """Every module of the package by name."""
    return {module_name(path, package): ast.parse(path.read_text()) for path in sorted(package.rglob("*.py"))}


def imports(tree: ast.Module, modules: set[str], package: str = "xent_metrics") -> Iterator[str]:
    """The package's modules that a module imports, at its top, in a function or for types only."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"a relative import: {ast.unparse(node)}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            head, _, rest = name.partition(".")
            if head == package:
                yield rest if rest in modules else rest.rpartition(".")[0]


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, by whatever detour (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(arrows.get(module, ())):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1 or module in arrows.get(module, ()):
                found.append(sorted(group))

    for module in sorted(arrows):
        if module not in index:
            visit(module)
    return found


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method."""
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def code_lines(node: ast.AST, text: str) -> int:
    """Lines with code: neither blank, nor comments, nor docstrings."""
    first, last = (node.lineno, node.end_lineno) if hasattr(node, "lineno") else (1, len(text.splitlines()))
    documented = (n for n in ast.walk(node) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef))
    docstrings: set[int] = set()
    for each in documented:
        start = each.body[0] if each.body else None
        if isinstance(start, ast.Expr) and isinstance(start.value, ast.Constant) and isinstance(start.value.value, str):
            docstrings |= set(range(start.lineno, (start.end_lineno or start.lineno) + 1))
    lines = text.splitlines()
    return sum(
        bool(lines[number - 1].strip()) and not lines[number - 1].strip().startswith("#") and number not in docstrings
        for number in range(first, last + 1)
    )


def private_names(tree: ast.Module) -> set[str]:
    """The underscore names that a module defines: functions, classes, methods, variables and attributes of ``self``."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return {name for name in found if is_private(name)}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_uses(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Line, name and whether it is one of ``self`` or ``cls``, for every underscore attribute and import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            base = node.value
            own = isinstance(base, ast.Name) and base.id in ("self", "cls")
            own |= isinstance(base, ast.Call) and isinstance(base.func, ast.Name) and base.func.id == "super"
            yield node.lineno, node.attr, own
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, alias.name, False) for alias in node.names if is_private(alias.name))
