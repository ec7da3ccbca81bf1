"""`xent report` writes the page that it names; the page is tested in tests/analysis."""

from support.cli import xent
from typer.testing import CliRunner

from xent_metrics.cli.app import app


def test_the_page_has_the_title_and_is_named(runs, tmp_path):
    path = tmp_path / "page.html"
    assert xent("report", *runs, "-o", path, "--title", "Two temperatures") == f"{path}\n"
    assert "<title>Two temperatures</title>" in path.read_text(encoding="utf-8")


def test_a_missing_folder_is_an_error(runs, tmp_path):
    result = CliRunner().invoke(app, ["report", str(runs[0]), "-o", str(tmp_path / "missing" / "x.html")])
    assert "doesn't exist; create it first" in str(result.exception)


def test_missing_tokens_are_named_with_what_gives_them(runs, tmp_path):
    path = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["report", *map(str, runs), "-o", str(path)])
    said = (
        "Tasks of A, B have no tokens in their samples: no coloured tokens, and no loss by position or token frequency"
    )
    assert " ".join(result.stderr.split()).startswith(said)
    assert "log_tokens=true" in result.stderr
    page = path.read_text(encoding="utf-8")
    assert said in page
    assert "or in nats of the whole document where no tokens were logged" in page
    assert "Point at a token" not in page
