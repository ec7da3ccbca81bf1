"""The hooks that build the site; `make docs` builds it, with every link checked."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import docs_site
import pytest
import yaml
from docs_site import linked, mathml, navigation, place, relinked, repository_pages, resolved
from support.documentation import PAGES, ROOT

from xent_metrics.explain import made_up
from xent_metrics.plugins import plugins

ADDRESS = "https://example.org/xent-metrics"


@pytest.fixture
def address(monkeypatch):
    """The repository has an address."""
    monkeypatch.setattr(docs_site, "repository_address", lambda: ADDRESS)


def test_a_link_out_of_docs_leads_to_a_page_of_the_site():
    text = (
        "[a](../xent_metrics/errors.py) [b](../plugins/xent-metrics-emd) [c](../benchmarks) [d](../README.md#install)"
    )
    assert relinked(text, "docs/plugins.md") == (
        "[a](repository/xent_metrics/errors.py.md) [b](repository/plugins/xent-metrics-emd/README.md) "
        "[c](repository/benchmarks.md) [d](index.md#install)"
    )


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("README.md", "[a](docs/plugins.md#hooks) [b](LICENSE)", "[a](plugins.md#hooks) [b](repository/LICENSE.md)"),
        ("docs/guides/a.md", "[a](../plugins.md) [b](../../README.md)", "[a](../plugins.md) [b](../index.md)"),
        (
            "plugins/xent-metrics-native/README.md",
            "[a](../..) [b](kernel.c)",
            "[a](../../../index.md) [b](kernel.c.md)",
        ),
        ("docs/a.md", "[a](https://arxiv.org) [b](#there)", "[a](https://arxiv.org) [b](#there)"),
        ("docs/a.md", "```text\n[a](../README.md)\n```\n", "```text\n[a](../README.md)\n```\n"),
    ],
)
def test_links_are_those_of_the_site(path, text, expected):
    assert relinked(text, path) == expected


@pytest.mark.usefixtures("address")
def test_with_an_address_links_lead_to_the_code_host():
    text = "[a](../xent_metrics/errors.py) [b](../benchmarks) [c](plugins.md) [d](../README.md)"
    assert relinked(text, "docs/a.md") == (
        f"[a]({ADDRESS}/blob/main/xent_metrics/errors.py) [b]({ADDRESS}/tree/main/benchmarks) [c](plugins.md) [d](index.md)"
    )
    assert sorted(repository_pages()) == ["index.md", "repository/CHANGELOG.md", "repository/CONTRIBUTING.md"]


def test_the_address_is_that_of_the_project(monkeypatch):
    urls = {"Project-URL": ["Documentation, https://d", f"Repository, {ADDRESS}"]}
    monkeypatch.setattr(
        docs_site, "metadata", lambda name: type("Metadata", (), {"get_all": lambda self, key: urls[key]})()
    )
    assert docs_site.repository_address() == ADDRESS
    urls["Project-URL"] = None
    assert docs_site.repository_address() == ""


def test_every_link_has_a_page():
    pages = repository_pages()
    places = {*pages, *(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*"))}
    texts = {uri: text for uri, text in pages.items() if "~~~~" not in text}
    texts |= {
        place(path): relinked((ROOT / path).read_text(encoding="utf-8"), path)
        for path in (path.relative_to(ROOT).as_posix() for path in PAGES)
    }
    for uri, text in texts.items():
        for target in re.findall(
            r"\]\((?![a-z]+:|#)([^)\s#]+)", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.M)
        ):
            assert posixpath.normpath(posixpath.join(posixpath.dirname(uri), target)) in places, (
                f"{uri} links to {target}"
            )


def test_a_file_is_shown_whole_and_a_folder_listed():
    pages = repository_pages()
    hooks = (ROOT / "xent_metrics" / "hookspecs.py").read_text(encoding="utf-8")
    assert f"~~~~python\n{hooks}~~~~\n" in pages["repository/xent_metrics/hookspecs.py.md"]
    assert "\ncard/\n" in pages["repository/benchmarks.md"]
    assert "__pycache__" not in pages["repository/benchmarks.md"]


def test_links_of_code_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr(docs_site, "ROOT", tmp_path)
    (tmp_path / "a.md").write_text("[a](b.py)\n```text\n[b](c.py)\n```\n")
    assert list(linked("a.md")) == ["b.py"]
    assert resolved("a.md", "b/../c.md") == "c.md"


def test_a_link_that_leads_nowhere_is_left_to_mkdocs(tmp_path, monkeypatch):
    monkeypatch.setattr(docs_site, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("[a](nowhere.py) [b](there.py)")
    (tmp_path / "there.py").write_text("1\n")
    assert sorted(repository_pages()) == ["index.md", "repository/there.py.md"]


@pytest.mark.parametrize("name", sorted(name for name, metric in plugins().metrics.items() if metric.latex))
def test_a_formula_becomes_mathml(name):
    """Without a command that the converter doesn't know, which it would show as it is."""
    found = mathml(plugins().metrics[name].latex)
    assert re.fullmatch(r'<div><math [^>]*display="block".*</math></div>', found, re.DOTALL)
    assert "\\" not in found


def test_an_unknown_command_would_show():
    assert "\\" in mathml(r"\nosuchcommand x")


def test_every_metric_has_a_page_and_a_picture(monkeypatch):
    monkeypatch.setattr(made_up, "picture", lambda metric: f"<svg>{metric.name}</svg>" * (metric.name != "perplexity"))
    pages = docs_site.metric_pages()
    names = plugins().metrics
    assert {name for name in pages if name.endswith(".md")} == {
        "metrics/index.md",
        *(f"metrics/{name}.md" for name in names),
    }
    assert pages["metrics/z_loss.svg"] == "<svg>z_loss</svg>"
    assert "(z_loss.svg)" in pages["metrics/z_loss.md"]
    assert "metrics/perplexity.svg" not in pages
    assert "## Picture" not in pages["metrics/perplexity.md"]


def test_a_folder_stands_for_its_pages():
    entries = [
        {"Home": "index.md"},
        {"Guides": "guides/"},
        {"Tutorials": "tutorials/"},
        {"Depth": ["a.md", {"B": "b.md"}]},
    ]
    pages = ["a.md", "b.md", "guides/a.md", "guides/index.md", "guides/z.md", "index.md"]
    assert list(navigation(entries, pages)) == [
        {"Home": "index.md"},
        {"Guides": ["guides/index.md", "guides/a.md", "guides/z.md"]},
        {"Depth": ["a.md", {"B": "b.md"}]},
    ]


def test_a_folders_readme_comes_first():
    [entry] = navigation([{"Guides": "guides/"}], ["guides/A.md", "guides/README.md"])
    assert entry == {"Guides": ["guides/README.md", "guides/A.md"]}


def test_metrics_are_listed_by_family():
    pages = ["metrics/index.md", *(f"metrics/{name}.md" for name in plugins().metrics)]
    [entry] = navigation([{"Metrics": "metrics/"}], pages)
    index, *families = entry["Metrics"]
    assert index == "metrics/index.md"
    assert sorted(page for family in families for inside in family.values() for page in inside) == sorted(pages[1:])


def test_nothing_is_loaded_from_other_sites():
    """Material would load fonts; the search and everything else is its own."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.search(r"^  font: false", text, re.MULTILINE)
    config = yaml.load(re.sub(r"!!python\S+", "", text), Loader=yaml.SafeLoader)
    assert not {"extra_javascript", "extra_css", "extra"} & config.keys()
    assert config["hooks"] == [Path(docs_site.__file__).relative_to(ROOT).as_posix()]
