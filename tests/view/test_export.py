"""An export has every page that a reader can get to, within its bounds, and replaces nothing but an earlier export."""

import pytest
from support.result_files import write_results

from xent_metrics.errors import InvalidInputError
from xent_metrics.view import export
from xent_metrics.view.export import export_site
from xent_metrics.view.folder import RunFolder
from xent_metrics.view.site import ASSETS, Site


def count(target, kind):
    return len(list(target.glob(f"{kind}--*.html")))


def test_documents_and_baselines_are_bounded(written, tmp_path):
    folder = RunFolder(written)
    first = folder.snapshot().runs[1].slug
    number = export_site(Site(folder, most_documents=3, baselines=[first]), tmp_path / "site")
    assert number == len(list((tmp_path / "site").glob("*.html")))
    assert count(tmp_path / "site", "document") == 2 * 3  # of two runs with documents
    assert count(tmp_path / "site", "against") == 1
    assert count(tmp_path / "site", "run") == 3
    assert "data-live" not in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert {path.name for path in (tmp_path / "site").iterdir()} > ASSETS.keys()


def test_an_earlier_export_is_replaced(tmp_path):
    write_results(tmp_path / "runs" / "a", {"t": {"acc": 0.5}})
    export_site(Site(RunFolder(tmp_path / "runs")), tmp_path / "site")
    (tmp_path / "runs" / "a").rename(tmp_path / "runs" / "b")
    before = {path.name for path in (tmp_path / "site").glob("run--*")}
    export_site(Site(RunFolder(tmp_path / "runs")), tmp_path / "site")
    after = {path.name for path in (tmp_path / "site").glob("run--*")}
    assert len(after) == 1
    assert after.isdisjoint(before)


@pytest.mark.parametrize("stop", range(1, 6))
def test_an_export_that_was_killed_anywhere_is_written_again(tmp_path, monkeypatch, stop):
    """Before the file's place is taken, and after: what it was writing is left beside it."""
    write_results(tmp_path / "runs" / "a", {"t": {"acc": 0.5}})
    site, target = Site(RunFolder(tmp_path / "runs")), tmp_path / "site"
    written = []

    def write(path, content):
        written.append(path)
        if len(written) == stop:
            (target / f".{path.name[:20]}.0123abcd.part").write_bytes(content[:10])
            raise KeyboardInterrupt
        path.write_bytes(content)

    monkeypatch.setattr(export, "_write", write)
    with pytest.raises(KeyboardInterrupt):
        export_site(site, target)
    monkeypatch.undo()
    number = export_site(site, target)
    assert number == len(list(target.glob("*.html")))


def test_a_style_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "view.css").write_text("mine")
    with pytest.raises(InvalidInputError, match=r"holds view\.css"):
        export_site(Site(RunFolder(tmp_path)), tmp_path)
    assert (tmp_path / "view.css").read_text() == "mine"


@pytest.mark.parametrize("name", ["notes.txt", "index.html"])
def test_a_folder_that_holds_other_things_is_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InvalidInputError, match=f"holds {name}; expected a new or empty folder, or an earlier export"):
        export_site(Site(RunFolder(tmp_path)), tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "site").write_text("mine")
    with pytest.raises(InvalidInputError, match="is a file; expected a folder"):
        export_site(Site(RunFolder(tmp_path)), tmp_path / "site")
