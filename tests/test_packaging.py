"""What a user gets: a wheel with everything in it, and documentation whose Python and commands work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.documentation import PAGES, ROOT, RUN_PAGES

from xent_metrics import RatioMetric, list_metrics
from xent_metrics.hosts.lm_eval.metric_list import read_metric_list
from xent_metrics.testing import check_metric


def fenced(language: str) -> list[tuple[Path, str]]:
    """The code blocks of one language, each with its page."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [(page, block) for page in RUN_PAGES for block in pattern.findall(page.read_text())]


#: Blocks of ```python run, each by itself; test_docs_blocks.py has those of ```py, which need a reader's own model or data.
PYTHON = fenced("python")
#: Tasks of lm-eval.
TASKS = [(page, block) for page, block in fenced("yaml") if "metric_list:" in block]
#: Our own commands with their options; what goes on to lm-eval is lm-eval's.
COMMANDS = sorted(
    {
        (words.group(1), option)
        for _, block in fenced("console")
        for line in block.replace("\\\n", "").splitlines()
        if (words := re.match(r"\$ xent (plot \w+|[\w-]+)", line)) and words.group(1) != "lm-eval"
        for option in re.findall(r" (--?[a-z][\w-]*)", line) or [""]
    }
)


@pytest.mark.slow
def test_the_wheel_has_the_task_configs_and_the_types(tmp_path):
    """Built as `pip install` builds it, but with the hatchling that is installed."""
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT],
        env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("xent_metrics-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        f"xent_metrics/{path.relative_to(ROOT / 'xent_metrics')}" for path in (ROOT / "xent_metrics").rglob("*.py")
    }
    configs = {f"xent_metrics/task_configs/{path.name}" for path in (ROOT / "task_configs").glob("*.yaml")}
    endings = "*.j2", "*.tmpl", "*.css", "*.js"
    templates = {str(path.relative_to(ROOT)) for ending in endings for path in (ROOT / "xent_metrics").rglob(ending)}
    assert len(templates) >= 18
    assert len(configs) >= 10
    assert sources | configs | templates | {"xent_metrics/py.typed"} <= packed
    assert not [name for name in packed if name.startswith(("tests/", "plugins/", "task_configs/"))]
    [entry_points] = [name for name in packed if name.endswith("/entry_points.txt")]
    declared = zipfile.ZipFile(wheel).read(entry_points).decode().splitlines()
    assert {"xent = xent_metrics.cli:main", "xent-metrics = xent_metrics.cli:main"} <= set(declared)
    assert "xent_metrics.testing.pytest_plugin = xent_metrics.testing.pytest_plugin" in declared
    assert "xent-hf = xent_metrics.hosts.lm_eval.models.hf_lm:XentHFLM" in declared


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[f"{p.name}-{b.splitlines()[-1][:40]}" for p, b in PYTHON])
def test_the_python_of_the_documentation_runs(page, block, monkeypatch):
    made = ModuleType("documented")
    monkeypatch.setitem(sys.modules, "documented", made)  # what it defines can be pickled
    exec(compile(block, page.name, "exec"), vars(made))
    for metric in list(vars(made).values()):
        if isinstance(metric, type) and issubclass(metric, RatioMetric) and metric.__module__ == "documented":
            check_metric(metric())


def test_the_readme_and_the_pages_have_python():
    assert sum(page.name == "README.md" for page, _ in PYTHON) >= 2
    assert len({page for page, _ in PYTHON}) >= 8


@pytest.mark.parametrize(("page", "block"), TASKS, ids=[page.name for page, _ in TASKS])
def test_the_tasks_of_the_documentation_name_metrics_that_they_can_have(page, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "counts.json").write_text("[3, 1, 2]")

    class Loader(yaml.SafeLoader):
        """Knows lm-eval's `!function`."""

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    config = yaml.load(block, Loader=Loader)
    entries, _, _ = read_metric_list(config)
    ours = [each for each in config["metric_list"] if each["metric"] in list_metrics()]
    assert [entry.name for entry in entries] == [each.get("name", each["metric"]) for each in ours]
    assert ours


def test_the_readme_has_a_task():
    assert "README.md" in {page.name for page, _ in TASKS}


@pytest.mark.parametrize("command", sorted({command for command, _ in COMMANDS}))
def test_the_commands_of_the_documentation_exist_and_take_their_options(command):
    shown = subprocess.run(
        [sys.executable, "-m", "xent_metrics.cli", *command.split(), "--help"],
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    options = {option for name, option in COMMANDS if name == command and option}
    assert options <= set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", shown.stdout))


def test_the_commands_of_the_documentation_are_found():
    assert {"metrics", "compare", "plot reliability", "compare-models"} <= {command for command, _ in COMMANDS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_installs_from_pypi_what_is_not_there(page):
    """`xent-metrics` alone would be looked up on PyPI; a checkout or a git address is not."""
    assert not re.search(r"pip install\b[^\n]*[\s'\"]xent-metrics(?!-)(?! @ git)", page.read_text())


def test_every_pinned_version_has_hashes():
    """But torch: `make hashes` says why."""
    hashes = (ROOT / ".ci" / "hashes.txt").read_text()
    listed = re.findall(r"^(\S+==\S+) \\\n(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+", hashes, re.MULTILINE)
    pinned = [Requirement(pin) for pin in (ROOT / "constraints.txt").read_text().split()]
    assert sorted(listed) == sorted(
        f"{canonicalize_name(pin.name)}{pin.specifier}" for pin in pinned if pin.name != "torch"
    )
    assert hashes.count("==") == len(listed)
