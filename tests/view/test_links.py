"""Names of pages are safe, stable and told apart."""

import re

import pytest

from xent_metrics.view.links import PageNotFoundError, PageParts, page_name, page_parts, slug

HOSTILE = ["", "..", "../../etc/passwd", "a/b", "a\\b", "<script>", "a--b", "\ud800", "é" * 500, "\0", "x" * 500]


def test_slugs_of_any_text_are_safe_names_of_files():
    for text in HOSTILE:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug(text)), text
        assert len(slug(text)) <= 49
    assert len({slug(text) for text in HOSTILE}) == len(HOSTILE)


def test_a_name_gives_back_its_parts():
    slugs = tuple(slug(text) for text in HOSTILE[:3])
    assert page_parts(page_name("document", *slugs)) == PageParts("document", slugs)


@pytest.mark.parametrize("name", ["index", "index.htm", "../index.html", "a b.html", "", "a.html/", "A.html"])
def test_other_names_are_not_found(name):
    with pytest.raises(PageNotFoundError, match="no page is called"):
        page_parts(name)
