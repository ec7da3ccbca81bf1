"""Every page that a reader can get to, with hostile text in every string: escaped, and without inline scripts or styles."""

import html
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from support.logged_runs import HOSTILE, write_run, write_token_run
from support.result_files import write_results

from xent_metrics.view import site as sites
from xent_metrics.view.export import export_site
from xent_metrics.view.folder import RunFolder
from xent_metrics.view.links import PageNotFoundError, page_name, slug
from xent_metrics.view.site import ASSETS, CONTENT_SECURITY_POLICY, Site, asset

from .conftest import NAME


class Elements(HTMLParser):
    """All elements of a page: names and attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def pages(site, tmp_path_factory):
    """All pages of the folder by name."""
    target = tmp_path_factory.mktemp("pages") / "site"
    export_site(site, target)
    return {path.name: path.read_text(encoding="utf-8") for path in target.glob("*.html")}


def kinds(pages):
    return {name.partition("--")[0].removesuffix(".html") for name in pages}


def test_every_kind_of_page_is_reached(pages):
    of_documents = {"documents", "document", "pairs", "pair"}
    assert kinds(pages) == {"index", "metric", "tasks", "run", "task", "chart", "against"} | of_documents


def test_no_page_has_an_inline_script_a_style_or_a_handler(pages):
    for name, page in pages.items():
        for tag, attributes in Elements(page).found:
            assert tag not in ("style", "img", "iframe", "object", "form", "base"), name
            assert tag != "script" or attributes == {"src": "view.js", "defer": None}, name
            assert not [each for each in attributes if each == "style" or each.startswith("on")], name
            for link in ("href", "src"):
                assert re.fullmatch(r"#content|[a-z0-9.-]+", attributes.get(link, "#content")), name


def test_hostile_text_is_escaped_everywhere(pages):
    raw = [NAME, *HOSTILE[:3], "</script>"]
    for name, page in pages.items():
        own = page.replace('<script src="view.js" defer></script>', "")
        assert not [text for text in raw if text in own], name
    shown = " ".join(Elements(page).text for page in pages.values())
    for text in (NAME, *HOSTILE):
        assert text in html.unescape(shown) or text[:20] in shown
    assert "{{ 7 * 7 }}" in shown
    assert not re.search(r"\b49\b", Elements(pages["index.html"]).text)


def test_all_links_lead_to_pages(pages):
    for name, page in pages.items():
        for tag, attributes in Elements(page).found:
            if tag == "a" and attributes["href"] != "#content":
                assert attributes["href"] in pages, name


def test_every_page_carries_the_policy(pages):
    for page in pages.values():
        policies = [a["content"] for t, a in Elements(page).found if a.get("http-equiv") == "Content-Security-Policy"]
        assert policies == [CONTENT_SECURITY_POLICY]
    assert "unsafe" not in CONTENT_SECURITY_POLICY


def test_problems_are_on_the_first_page(tmp_path):
    write_results(tmp_path / "a", {"t": {"acc": 0.5}})
    (tmp_path / "<i>").mkdir()
    (tmp_path / "<i>" / "results_2026.json").write_text("{")
    page = Site(RunFolder(tmp_path)).page("index.html").decode()
    assert "Problems" in page
    assert "<b>&lt;i&gt;</b>" in page
    assert 'href="run--a-' in page  # the rest is shown


def test_tables_are_shown_without_torch(tmp_path):
    write_results(tmp_path / "a", {"t": {"acc": 0.5}})
    run = page_name("run", RunFolder(tmp_path).snapshot().runs[0].slug)
    script = f"""
import pathlib, sys
from xent_metrics.view.folder import RunFolder
from xent_metrics.view.site import ASSETS, Site, asset
site = Site(RunFolder(pathlib.Path({str(tmp_path)!r})))
for name in ("index.html", "tasks.html", {page_name("task", slug("t"))!r}, {run!r}):
    site.page(name)
for name in ASSETS:
    asset(name)
print("torch" in sys.modules)
"""
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "False\n"


def test_an_empty_folder_says_what_to_do(tmp_path):
    assert "No run can be shown yet" in Site(RunFolder(tmp_path)).page("index.html").decode()


def test_a_folder_that_is_gone_is_said_on_every_page(tmp_path):
    write_token_run(tmp_path / "runs" / "a")
    folder = RunFolder(tmp_path / "runs")
    run = folder.snapshot().runs[0]
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    folder.snapshot(now=True)
    site = Site(folder)
    for name in ("index.html", page_name("run", run.slug)):
        assert "is gone since" in site.page(name).decode()
    assert "is gone" in site.page(page_name("documents", run.slug, slug("t"))).decode()


@pytest.mark.parametrize(
    "name",
    ["nothing.html", "run.html", "run--nothing.html", "index--a--b.html", "chart--t.html", "metric--nothing.html",
     page_name("task", slug("cross_entropy")), page_name("chart", slug("all"), slug("cross_entropy"))],
)  # fmt: skip
def test_what_is_not_there_is_not_found(site, name):
    with pytest.raises(PageNotFoundError):
        site.page(name)


def test_pages_are_numbered_from_one(site):
    run = site.folder.snapshot().runs[1]
    assert site.page(page_name("documents", run.slug, slug("t"), "1"))
    for number in ("0", "x", "01", "9" * 30):
        with pytest.raises(PageNotFoundError, match="no page has the number"):
            site.page(page_name("documents", run.slug, slug("t"), number))


def test_a_run_lacks_the_tasks_of_others(site):
    run = site.folder.snapshot().runs[1]
    with pytest.raises(PageNotFoundError, match="has no task all"):
        site.page(page_name("documents", run.slug, slug("all")))


def test_a_lone_surrogate_is_no_error(tmp_path):
    write_results(tmp_path / "a", {"\ud800": {"acc": 0.5}})
    assert rb"\ud800" in Site(RunFolder(tmp_path)).page("index.html")


def test_what_cannot_be_shown_is_a_page_of_its_own(site):
    other = site.folder.snapshot().runs[0]
    page = site.page(page_name("documents", other.slug, slug("all"))).decode()
    assert "all is a group, which has no documents of its own: see its tasks" in page


def test_assets_are_files_of_ours():
    for name, (_, _, kind) in ASSETS.items():
        assert kind in ("text/css", "text/javascript")
        assert b"http" not in asset(name)
    assert sites.CONTENT_SECURITY_POLICY.startswith("default-src 'none'")


def test_notes_are_not_under_the_heading_of_problems(tmp_path):
    for name in ("a", "b"):
        write_results(tmp_path / name, {"t": {"acc": 0.5}})
    page = Site(RunFolder(tmp_path)).page("index.html").decode()
    assert '<h2 id="notes">Notes</h2>' in page
    assert "2 runs have this model" in page
    assert "Problems" not in page
    assert "⚠" not in page
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "samples_t_2026.jsonl").write_text("{", encoding="utf-8")
    page = Site(RunFolder(tmp_path)).page("index.html").decode()
    assert page.index('<h2 id="problems">') < page.index("⚠ <b>c</b>: samples without") < page.index('<h2 id="notes">')


@pytest.mark.parametrize("kind", ["chart", "documents"])
def test_a_chart_says_what_its_bars_are(pages, kind):
    captions = [
        caption
        for name, page in pages.items()
        if name.startswith(f"{kind}--")
        for caption in re.findall("<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    ]
    assert captions
    assert all("95 % interval over documents" in caption for caption in captions)


def test_pages_without_tokens_say_what_is_missing_and_how_to_have_it(tmp_path):
    write_run(tmp_path / "a", texts=["one document", "another one"])
    site = Site(RunFolder(tmp_path))
    export_site(site, tmp_path / "site")
    for kind in ("documents", "document"):
        pages = [path.read_text(encoding="utf-8") for path in (tmp_path / "site").glob(f"{kind}--*.html")]
        assert pages
        for page in pages:
            assert "nats of the whole document" in page
            assert re.search("No tokens were logged.*To have them, evaluate with .*log_tokens=true", page)
