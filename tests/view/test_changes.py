"""Changes over training are those of `xent series`, looked for when their page is opened."""

import shutil
import sys
from pathlib import Path

import pytest
from support.result_files import write_results

from xent_metrics.analysis.series import read_series
from xent_metrics.view.changes import changes, searchable
from xent_metrics.view.curves import curves
from xent_metrics.view.folder import RunFolder
from xent_metrics.view.links import PageNotFoundError, page_name, slug
from xent_metrics.view.site import Site

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # as for a script that is run from there

from year import Year, write_year

YEAR = Year(nights=14, tasks=1, task="task_0", night=7, size=0.2, documents=8)
NAMES = ("task_0", "cross_entropy")


@pytest.fixture
def root(tmp_path):
    """A training whose loss rises at step 8000."""
    write_year(tmp_path / "runs" / "mine", YEAR)
    return tmp_path / "runs"


def looked_for(root):
    folder = RunFolder(root)
    return changes(folder, folder.snapshot().runs, *NAMES)


def test_they_are_those_of_xent_series(root):
    found = looked_for(root)
    [series] = read_series(sorted((root / "mine").iterdir()))
    [change] = series.changes
    assert found["rows"] == [
        {"training": "mine/checkpoint-…", "after": "7000", "by": "8000", "range": f"{change.earliest} … {change.latest}",
         "size": f"{change.size:+.3g}", "interval": f"{change.low:+.3g} … {change.high:+.3g}",
         "p": f"{change.p_corrected:.2g}", "verdict": "worse"}
    ]  # fmt: skip
    assert (found["places"], found["notes"]) == (9, [])
    assert found["marks"] == [(change.earliest, change.latest, f"{change.size:+.3g} by step 8000")]


def test_all_trainings_are_corrected_together(root):
    alone = looked_for(root)
    write_year(root / "other", Year(nights=14, tasks=1, task="task_0", size=0.0, documents=8, seed=1))
    found = looked_for(root)
    assert [row["training"] for row in found["rows"]] == ["mine/checkpoint-…"]
    assert found["places"] == 2 * alone["places"]
    assert float(found["rows"][0]["p"]) == pytest.approx(2 * float(alone["rows"][0]["p"]), rel=0.1)  # two digits


def test_checkpoints_that_cannot_be_used_are_named(root):
    next((root / "mine" / "checkpoint-2000").glob("samples_*")).unlink()
    shutil.rmtree(root / "mine" / "checkpoint-1000")
    folder = RunFolder(root)
    runs = folder.snapshot().runs
    shutil.rmtree(root / "mine" / "checkpoint-3000")
    found = changes(folder, runs, *NAMES)
    assert [row["by"] for row in found["rows"]] == ["8000"]
    assert len(found["notes"]) == 2
    assert found["notes"][0].startswith("mine/checkpoint-3000: ")
    assert "is gone" in found["notes"][0]
    assert found["notes"][1].startswith("mine/checkpoint-…: left out: ")


def test_few_checkpoints_and_groups_are_not_searched(tmp_path):
    for step in range(6):
        write_results(tmp_path / f"step{step}", {"t": {"acc": 0.5}, "g": {"acc": 0.5}}, groups={"g": {"acc,none": 0.5}})
    runs = RunFolder(tmp_path).snapshot().runs
    assert {name: list(each) for name, each in searchable(runs, "t").items()} == {"step…": [0, 1, 2, 3, 4, 5]}
    assert searchable(runs[1:], "t") == {}
    assert searchable(runs, "g") == {}


def test_the_chart_leads_to_a_page_that_marks_them(root):
    (root / "mine").rename(root / "<i>mine")
    site, names = Site(RunFolder(root), live=True), [slug(name) for name in NAMES]
    chart, page = (site.page(page_name(kind, *names)).decode() for kind in ("chart", "changes"))
    assert f'href="{page_name("changes", *names)}"' in chart
    assert "data-swap" in chart
    assert 'class="mark"' not in chart
    assert page.count('class="mark"') == 1
    assert "all 9 places" in page
    assert "<td>&lt;i&gt;mine/checkpoint-…</td>" in page
    assert "<i>" not in page
    assert "data-swap" not in page  # it reads every checkpoint: computed when it is opened, and not again by itself


def test_without_enough_checkpoints_there_is_no_such_page(tmp_path):
    write_year(tmp_path, Year(nights=5, tasks=1, task="task_0", night=2, documents=3))
    folder = RunFolder(tmp_path)
    assert curves(folder, folder.snapshot(), *NAMES)["look"] is None
    with pytest.raises(PageNotFoundError, match="no training has enough checkpoints"):
        Site(folder).page(page_name("changes", *map(slug, NAMES)))
