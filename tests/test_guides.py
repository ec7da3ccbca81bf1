"""The guides' figures are those that their script measures. Their other code blocks run in test_packaging.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.pages import run, tables, unlike

FOLDER = Path(__file__).parents[1] / "docs" / "guides"


@pytest.mark.slow
def test_the_figures_of_why_numbers_differ_are_measured(tmp_path):
    shutil.copy(FOLDER / "why_numbers_differ.py", tmp_path)
    printed = tables(run("python why_numbers_differ.py", tmp_path))
    assert unlike(tables((FOLDER / "why_numbers_differ.md").read_text()), printed) == []
    assert len(printed.splitlines()) > 30


def test_the_index_links_to_every_guide():
    index = (FOLDER / "README.md").read_text()
    assert [page.name for page in FOLDER.glob("*.md") if f"({page.name})" not in index] == ["README.md"]
