"""A folder of runs: two that logged tokens, hostile text among them, and a third with a group and hostile names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.logged_runs import write_token_run
from support.result_files import write_results

from xent_metrics.view.folder import RunFolder
from xent_metrics.view.site import Site

#: A name that is markup, a path and a template at once.
NAME = "<b>\"'&amp; {{ 7 * 7 }} ../x</b>"


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Path:
    """The folder, for tests that only read it."""
    root = tmp_path_factory.mktemp("folder")
    for step, temperature in ((10, 2.0), (20, 1.0)):
        write_token_run(root / f"step{step}", temperature)
    values = {"t": {"cross_entropy": 3.0}, NAME: {NAME: 0.5, f"{NAME}_stderr": 0.1}, "all": {NAME: 0.5}}
    groups = {"groups": {"all": {f"{NAME},none": 0.5}}, "group_subtasks": {"all": ["t", NAME]}}
    write_results(root / "other" / "step30", values, model_name=NAME, **groups)
    return root


@pytest.fixture
def root(written, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(written, tmp_path / "runs"))


@pytest.fixture(scope="session")
def site(written) -> Site:
    """Its pages."""
    return Site(RunFolder(written), live=True)
