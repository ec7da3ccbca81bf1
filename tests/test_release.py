"""What is published: versions agree, extras name real packages, and the forms of the repository are what they should be."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

from xent_metrics import __version__

ROOT = Path(__file__).parent.parent
PACKAGES = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
FORMS = sorted([*ROOT.glob(".github/**/*.yml"), ROOT / "CITATION.cff", ROOT / ".pre-commit-config.yaml"])
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in ROOT.glob(".github/workflows/*.yml")}


def metadata(folder: Path):
    """What hatch would publish."""
    return ProjectMetadata(str(folder), PluginManager())


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda path: path.name)
def test_every_package_has_the_one_version(folder):
    assert metadata(folder).version == __version__


def test_the_changelog_and_the_citation_have_the_version():
    newest = re.search(
        r"^## (\S+) \((?:unreleased|\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert newest, "the first release's heading is ## 1.2.3 (unreleased) or (2026-01-31)"
    assert newest[1] == __version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


def test_the_script_of_the_release_prints_the_version():
    command = [sys.executable, ROOT / ".ci" / "release_check.py", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == __version__


def test_the_extras_of_plugins_name_ours():
    extras = metadata(ROOT).core.optional_dependencies
    assert extras["native"] == ["xent-metrics-native"]
    assert [each.partition(";")[0] for each in extras["triton"]] == ["xent-metrics-triton"]
    assert {"xent-metrics-native", "xent-metrics-triton"} < {metadata(folder).core.raw_name for folder in PACKAGES}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_are_yaml(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_a_tag_publishes_every_package_after_all_checks():
    publish = WORKFLOWS["release"]["jobs"]["publish"]
    assert publish["strategy"]["matrix"]["package"] == [metadata(folder).core.raw_name for folder in PACKAGES]
    assert set(publish["needs"]) == WORKFLOWS["release"]["jobs"].keys() - {"publish"}
    assert publish["if"] == "github.ref_type == 'tag'"


def test_the_workflows_call_targets_and_scripts_that_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [
        step["run"]
        for flow in WORKFLOWS.values()
        for job in flow["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    called = {target for command in commands for target in re.findall(r"\bmake ([\w-]+)", command)}
    scripts = {script for command in commands for script in re.findall(r"\.ci/[\w.]+", command)}
    assert called - targets == set()
    assert scripts
    assert all((ROOT / script).exists() for script in scripts)
