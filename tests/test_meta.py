"""What must be true of the project itself: everything public is documented, tested and importable, and files stay small."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from functools import cached_property
from importlib.metadata import distribution, entry_points
from pathlib import Path

import pytest
from support.registered import buildable
from support.source import code_lines, module_name

import xent_metrics
from xent_metrics import errors, hookspecs, metrics
from xent_metrics.plugins import Plugins

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
PLUGINS_PAGE = (ROOT / "docs" / "plugins.md").read_text()
SOURCES = sorted((ROOT / "xent_metrics").rglob("*.py"))
TESTS = {path: path.read_text() for path in (ROOT / "tests").rglob("*.py") if path.name != Path(__file__).name}
HOOKS = {name: spec for name, spec in vars(hookspecs).items() if hasattr(spec, f"{hookspecs.PROJECT}_spec")}
MODULES = [module_name(path) for path in SOURCES if path.name != "__main__.py"]
INSTALLED = Plugins(entry_points(group=hookspecs.PROJECT))  # whatever this run of the tests loads
OURS = [plugin for plugin in INSTALLED.plugins if plugin.distribution.startswith("xent-metrics")]
METRICS = {name: metric for plugin in OURS for name, metric in plugin.metrics.items()}
FOLDERS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_and_tested(hook):
    assert hook in hookspecs.__all__
    assert HOOKS[hook].__doc__
    assert any(re.search(rf"\b{hook}\b", text) for text in TESTS.values()), f"no test uses {hook}"


def test_the_table_of_hooks_has_every_hook_as_it_is_called_and_no_other():
    rows = re.findall(r"^\| `(\w+)\((.*)\)` \| \S", PLUGINS_PAGE, re.MULTILINE)
    assert dict(rows) == {name: ", ".join(inspect.signature(spec).parameters) for name, spec in HOOKS.items()}


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_says_what_it_is(name):
    metric = METRICS[name]
    assert metric.formula
    assert metric.value_unit
    assert metric.reference or not metric.__module__.startswith("xent_metrics."), f"{name} names no reference"
    assert ">>> " in (metric.__doc__ or ""), f"{metric.__name__} has no example"
    assert len(metric.__doc__.splitlines()) <= 25
    assert re.search(rf"^\| `{name}`[^|]* \| .+ \| .+ \|$", README, re.MULTILINE), f"README.md has no row for {name}"


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_has_a_test_of_its_own(name):
    words = rf"\b({name}|{METRICS[name].__name__})\b"
    texts = [*TESTS.values(), *(path.read_text() for folder in FOLDERS for path in folder.rglob("test_*.py"))]
    assert any(re.search(words, text) for text in texts)


@pytest.mark.parametrize("name", sorted(set(METRICS) - set(buildable())))
def test_a_metric_that_a_name_alone_does_not_build_has_its_contract_checked(name):
    """The others are in test_contract.py."""
    texts = [*TESTS.values(), *(path.read_text() for folder in FOLDERS for path in folder.rglob("test_*.py"))]
    assert any(re.search(rf'check_metric\((get_metric\("{name}"|{METRICS[name].__name__}\()', text) for text in texts)


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_met_in_a_test(name):
    assert getattr(errors, name).__doc__
    if name != "XentMetricsError":  # the base of the others
        assert any(re.search(rf"\b{name}\b", text) for text in TESTS.values())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "xent_metrics")))
def test_files_are_small_and_tell_their_story(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert code_lines(tree, text) <= 300
    story = ast.get_docstring(tree)
    assert story, f"{path.name} has no docstring"
    assert len(story.splitlines()) <= 20
    assert path.name != "utils.py"


def untested(package: Path, tests: Path) -> list[str]:
    """Modules without a test file of their name in the mirrored folder."""
    modules = [path for path in package.rglob("*.py") if path.stem not in ("__init__", "__main__", "version")]
    return [
        str(path.relative_to(package))
        for path in sorted(modules)
        if not any((tests / path.relative_to(package).parent).glob(f"test_{path.stem}*.py"))
    ]


def test_tests_mirror_the_package():
    assert untested(ROOT / "xent_metrics", ROOT / "tests") == []


def test_a_module_without_its_test_file_is_found(tmp_path):
    for name in (
        "p/__init__.py",
        "p/a.py",
        "p/sub/a.py",
        "p/sub/b.py",
        "t/test_a.py",
        "t/test_b.py",
        "t/sub/test_b_1.py",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert untested(tmp_path / "p", tmp_path / "t") == ["sub/a.py"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_plugin_is_a_real_package_installed_documented_and_tested(folder):
    assert distribution(folder.name).entry_points.select(group=hookspecs.PROJECT)
    assert {plugin.distribution: plugin.error for plugin in OURS}.get(folder.name, "not loaded") is None
    assert (folder / "README.md").exists()
    assert f"plugins/{folder.name})" in PLUGINS_PAGE
    module = folder.name.replace("-", "_")
    tested_here = any(re.search(rf"\b({module}|{folder.name})\b", text) for text in TESTS.values())
    assert tested_here or any(folder.rglob("test_*.py"))


def test_the_readme_is_short():
    assert len(README) <= 12_600


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            name, _, anchor = target.partition("#")
            linked = (page.parent / name).resolve() if name else page
            assert linked.exists(), f"{page.name} links to {target}"
            assert linked.is_relative_to(ROOT), f"{page.name} links to {target}, outside of the repository"
            assert not anchor or anchor in _anchors(linked), f"{page.name} links to {target}"


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_the_readme_links_to_every_page(page):
    assert f"(docs/{page.name})" in README


def test_the_architecture_page_lists_the_rooms_in_their_order():
    page = (ROOT / "docs" / "architecture.md").read_text().partition("## From logits")[0]
    cells = re.findall(r"^\| (`.+?) \|", page, re.MULTILINE)
    [rooms] = re.findall(r'^ROOMS = """(.*?)"""', TESTS[ROOT / "tests" / "test_structure.py"], re.DOTALL | re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(cells)) == rooms.split()


def test_public_names_are_found_lazily_where_they_are_defined():
    tree = ast.parse(Path(xent_metrics.__file__).read_text())
    [for_types] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imported = {
        alias.name: node.module.removeprefix("xent_metrics.")
        for node in for_types.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    modules = dict.fromkeys(xent_metrics._MODULES, "xent_metrics")
    assert imported == {**xent_metrics._HOME, **modules}
    assert sorted(xent_metrics.__all__) == sorted(imported)
    for name in xent_metrics.__all__:
        assert getattr(xent_metrics, name) is not None


@pytest.mark.parametrize("name", sorted(n for n, m in METRICS.items() if m.__module__.startswith("xent_metrics.")))
def test_every_built_in_metric_is_importable_by_its_class_name(name):
    assert getattr(metrics, METRICS[name].__name__) is METRICS[name]


@pytest.mark.parametrize("name", MODULES)
def test_every_public_method_has_a_docstring(name):
    """Its own, or that of the method it overrides."""
    module = importlib.import_module(f"xent_metrics.{name}".rstrip("."))
    classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    public = [c for c in classes if not c.__name__.startswith("_")]
    methods = {
        f"{c.__name__}.{attr}": getattr(c, attr)
        for c in public
        for attr, value in vars(c).items()
        if not attr.startswith("_") and (inspect.isroutine(value) or isinstance(value, property | cached_property))
    }
    assert [method for method, value in methods.items() if not inspect.getdoc(value)] == []
    assert [c.__name__ for c in public if not inspect.getdoc(c)] == []
