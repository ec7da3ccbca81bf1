"""What must be true of the project itself: everything public is documented and tested, and files stay small."""

from __future__ import annotations

import ast
import re
from importlib.metadata import distribution, entry_points
from pathlib import Path

import pytest
from support.registered import buildable
from support.source import code_lines

from xent_metrics import errors, hookspecs
from xent_metrics.plugins import Plugins

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SOURCES = sorted((ROOT / "xent_metrics").rglob("*.py"))
TESTS = {path: path.read_text() for path in (ROOT / "tests").rglob("*.py") if path.name != Path(__file__).name}
HOOKS = [name for name in hookspecs.__all__ if name not in ("PROJECT", "hookimpl", "hooks", "hookspec", "set_hooks")]
INSTALLED = Plugins(entry_points(group=hookspecs.PROJECT))  # whatever this run of the tests loads
OURS = [plugin for plugin in INSTALLED.plugins if plugin.distribution.startswith("xent-metrics")]
METRICS = {name: metric for plugin in OURS for name, metric in plugin.metrics.items()}
FOLDERS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_and_tested(hook):
    assert re.search(rf"^\| `{hook}\(.*\)` \| \S", README, re.MULTILINE), f"README.md has no row for {hook}"
    assert getattr(hookspecs, hook).__doc__
    assert any(re.search(rf"\b{hook}\b", text) for text in TESTS.values()), f"no test uses {hook}"


def test_there_are_no_other_hooks():
    specs = {name for name, value in vars(hookspecs).items() if getattr(value, f"{hookspecs.PROJECT}_spec", None)}
    assert specs == set(HOOKS)


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


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_plugin_is_a_real_package_installed_documented_and_tested(folder):
    assert distribution(folder.name).entry_points.select(group=hookspecs.PROJECT)
    assert {plugin.distribution: plugin.error for plugin in OURS}.get(folder.name, "not loaded") is None
    assert (folder / "README.md").exists()
    assert f"plugins/{folder.name}" in README
    module = folder.name.replace("-", "_")
    tested_here = any(re.search(rf"\b({module}|{folder.name})\b", text) for text in TESTS.values())
    assert tested_here or (folder / f"test_{module}.py").exists()
