"""The tutorials run, show all of their scripts' code and print what their pages say; the notebook runs."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient
from support.pages import blocks, code, commands, run, unlike
from support.versions import needs_trl

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
TUTORIALS = [page for page in sorted(FOLDER.glob("*.md")) if page.name != "README.md"]
each_tutorial = pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
each_that_runs = pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.stem, marks=[needs_trl] if page.stem == "trl" else []) for page in TUTORIALS]
)


def scripts(page: Path) -> list[str]:
    """The scripts that the page runs, in order."""
    lines = [command.line for command in commands(page.read_text())]
    return [word for line in lines for word in line.split() if word.endswith(".py")]


@each_tutorial
def test_a_page_shows_all_of_its_scripts_and_of_its_task(page):
    text = page.read_text()
    assert code("\n".join(blocks(text, "python"))) == code("\n".join((FOLDER / s).read_text() for s in scripts(page)))
    assert all(block == (FOLDER / "topics.yaml").read_text() for block in blocks(text, "yaml"))


def test_every_script_is_run_by_a_page():
    run_by_pages = {script for page in TUTORIALS for script in scripts(page)}
    assert run_by_pages == {path.name for path in FOLDER.glob("*.py")} - {"first_steps.py"}


@each_that_runs
@pytest.mark.slow
def test_a_tutorial_prints_what_its_page_shows(page, tmp_path):
    folder = tmp_path / "tutorials"
    shutil.copytree(FOLDER, folder)
    for command in commands(page.read_text()):
        assert unlike(command.output, run(command.line, folder)) == [], command.line


def test_the_index_links_to_every_tutorial():
    index = (FOLDER / "README.md").read_text()
    assert [page.name for page in TUTORIALS if f"({page.name})" not in index] == []


def test_commands_are_read_with_their_output():
    page = (
        "Run\n\n```console\n$ python a.py\nloss 1\nloss 2\n$ xent lm-eval \\\n    run\n```\n\n```python\nx = 1\n```\n"
    )
    assert commands(page) == [("python a.py\n", "loss 1\nloss 2\n"), ("xent lm-eval \\\n    run\n", "")]
    assert blocks(page, "python") == ["x = 1\n"]


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("loss 4.2167 ± 0.0319", "loss 4.3167 ± 0.0319"),
        ("3264 tokens", "3263 tokens"),
        ("loss 4.2167", "cost 4.2167"),
        ("better: B", "better: A"),
        ("a\nb", "a"),
        ("off by +1.10 %", "off by -1.10 %"),
    ],
)
def test_other_words_and_other_numbers_are_found(shown, printed):
    assert len(unlike(shown, printed, numbers=True)) == 1


@pytest.mark.parametrize(
    ("shown", "printed"),
    [("loss 4.2167 ± 0.0319", "loss 4.2171  ± 0.0318"), ("3,264 tokens", "3,264 tokens"), ("+0.02 %", "+0.03 %")],
)
def test_last_digits_are_the_machines(shown, printed):
    assert unlike(shown, printed, numbers=True) == []


def test_another_corpus_changes_numbers_alone():
    assert unlike("3264 tokens, 1.5", "1 tokens, 2.5", numbers=False) == []
    assert unlike("3264 tokens", "3264 bytes", numbers=False) == ["'3264 tokens' is '3264 bytes'"]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    """As Jupyter runs it: its own kernel, cell by cell."""
    notebook = jupytext.read(FOLDER / "first_steps.py")
    assert {cell.cell_type for cell in notebook.cells} == {"code", "markdown"}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    printed = "".join(
        output.text for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "stream"
    )
    values = dict(re.findall(r"^(\w+) +([\d.]+)$", printed, re.MULTILINE))
    assert float(values["bits_per_byte"]) == pytest.approx(float(values["cross_entropy"]) / math.log(2), abs=1e-4)
    assert float(values["bits_per_byte"]) < 5  # it has learnt something
    assert "equal to the last bit: True" in printed
    assert re.search(r"difference [+-]\d\.\d+, 95 % interval .+, better: (A|B|None)", printed)
