"""`xent report` writes the page that it names; the page is tested in tests/analysis."""

from support.cli import xent


def test_the_page_has_the_title_and_is_named(runs, tmp_path):
    path = tmp_path / "page.html"
    assert xent("report", *runs, "-o", path, "--title", "Two temperatures") == f"{path}\n"
    assert "<title>Two temperatures</title>" in path.read_text(encoding="utf-8")
