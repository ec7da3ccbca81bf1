"""The pages in a real browser: the policy holds, tables sort and filter, new runs appear, all by keyboard and on any screen."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import uvicorn
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from support.browser import body_contrast, chromium, emulate, open_page
from support.logged_runs import HOSTILE, TOKEN_TEXTS
from support.result_files import write_results

from xent_metrics.view.export import export_site
from xent_metrics.view.folder import RunFolder
from xent_metrics.view.links import page_name, slug
from xent_metrics.view.server import allowed_hosts, application
from xent_metrics.view.site import Site

from .conftest import NAME


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def served():
    """Serves a folder; returns the address."""
    started = []

    def serve(root: Path) -> str:
        app = application(Site(RunFolder(root), live=True), allowed_hosts("127.0.0.1"))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run)
        thread.start()
        started.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"

    yield serve
    for server, thread in started:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def exported(written, tmp_path_factory):
    """The pages as static files."""
    target = tmp_path_factory.mktemp("exported") / "site"
    export_site(Site(RunFolder(written)), target)
    return target


def first_column(browser):
    """What the shown rows begin with, in one step: the page may be replaced at any time."""
    rows = "[...document.querySelectorAll('table.sortable tbody tr')].filter(row => row.offsetParent)"
    return browser.execute_script(f"return {rows}.map(row => row.cells[0].textContent)")


def complaints(browser):
    return [entry["message"] for entry in browser.get_log("browser") if "favicon" not in entry["message"]]


def one_of_each_kind(exported):
    return {path.name.partition("--")[0]: path for path in sorted(exported.glob("*.html"))}


def test_exported_pages_of_every_kind_fit_a_narrow_screen_and_break_no_policy(browser, exported):
    emulate(browser, width=400)
    for kind, path in one_of_each_kind(exported).items():
        open_page(browser, path.as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 400, kind
        assert browser.execute_script("return getComputedStyle(document.body).fontFamily").startswith("system-ui")
        assert "49" not in browser.title
        assert complaints(browser) == [], kind
    emulate(browser)


def test_hostile_documents_stay_text(browser, exported):
    texts = set()
    for path in exported.glob("document--*.html"):
        open_page(browser, path.as_uri())
        texts.add(browser.find_element(By.ID, "text").get_property("textContent"))
        assert not browser.find_elements(By.CSS_SELECTOR, "#text img, #text svg, #text script, h1 b")
        assert browser.title != "broken"
    assert texts == set(TOKEN_TEXTS) > set(HOSTILE)


def test_tables_are_sorted_by_keyboard_and_a_sorted_table_is_a_link(browser, tmp_path, served):
    for name, value in (("b", 0.5), ("c", 12.0), ("a", 2.0), ("none", None)):
        write_results(tmp_path / name, {"t": {} if value is None else {"acc": value}})
    address = served(tmp_path)
    open_page(browser, address)
    assert first_column(browser) == ["a", "b", "c", "none"]
    browser.find_element(By.CSS_SELECTOR, "th.task button.sort").send_keys(Keys.ENTER)
    assert first_column(browser) == ["b", "a", "c", "none"]
    browser.switch_to.active_element.send_keys(Keys.SPACE)
    assert first_column(browser) == ["c", "a", "b", "none"]  # what is missing comes last both ways
    assert browser.find_element(By.CSS_SELECTOR, "th.task").get_attribute("aria-sort") == "descending"
    link = browser.current_url
    browser.get("about:blank")
    open_page(browser, link)
    assert first_column(browser) == ["c", "a", "b", "none"]


def test_runs_and_tasks_are_filtered(browser, exported):
    open_page(browser, (exported / "index.html").as_uri())
    browser.find_element(By.ID, "rows").send_keys("STEP10")
    assert first_column(browser) == ["step10/bigram"]
    assert browser.current_url.endswith("#rows=STEP10")
    open_page(browser, (exported / page_name("metric", slug(NAME))).as_uri())
    browser.find_element(By.ID, "columns").send_keys("7 * 7")
    heads = browser.find_elements(By.CSS_SELECTOR, "th.task")
    assert [head.is_displayed() for head in heads] == [False, True]


def test_a_new_run_appears_and_the_table_stays_sorted_and_filtered(browser, tmp_path, served):
    for name in ("step1", "step2", "other"):
        write_results(tmp_path / "runs" / name, {"t": {"acc": 0.5}})
    open_page(browser, served(tmp_path / "runs"))
    find = browser.find_element(By.ID, "rows")
    find.send_keys("step")
    sort = browser.find_element(By.CSS_SELECTOR, "th button.sort")
    sort.click()
    sort.click()
    assert first_column(browser) == ["step2", "step1"]
    find.click()
    write_results(tmp_path / "runs" / "step3", {"t": {"acc": 0.5}})
    wait(lambda: first_column(browser) == ["step3", "step2", "step1"])
    assert browser.switch_to.active_element.get_attribute("id") == "rows"
    assert browser.find_element(By.ID, "status").text.startswith("Updated at ")
    (tmp_path / "runs").rename(tmp_path / "gone")
    wait(lambda: "is gone since" in browser.execute_script("return document.getElementById('content').textContent"))
    assert first_column(browser) == ["step3", "step2", "step1"]
    assert complaints(browser) == []


def wait(until):
    start = time.perf_counter()
    while not until():
        assert time.perf_counter() - start < 60
        time.sleep(0.1)


def test_tokens_are_read_by_keyboard(browser, exported):
    open_page(browser, one_of_each_kind(exported)["document"].as_uri())
    text = browser.find_element(By.ID, "text")
    text.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ARROW_RIGHT)
    token = text.find_elements(By.TAG_NAME, "span")[1]
    assert token.get_attribute("class").endswith("chosen")
    assert browser.find_element(By.ID, "detail").get_property("textContent") == token.get_attribute("title")
    assert "nats, probability" in token.get_attribute("title")


def test_a_point_of_a_chart_is_a_link_to_its_run(browser, exported):
    open_page(browser, (exported / page_name("chart", slug("t"), slug("cross_entropy"))).as_uri())
    points = browser.find_elements(By.CSS_SELECTOR, ".chart svg a")
    labels = [point.get_attribute("aria-label") for point in points]
    assert [label.partition(":")[0] for label in labels] == ["other/step30", "step10/bigram", "step20/bigram"]
    browser.execute_script("arguments[0].focus()", points[1])
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    wait(lambda: browser.title == "step10/bigram")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_have_contrast(browser, exported, scheme):
    emulate(browser, scheme=scheme)
    open_page(browser, (exported / "index.html").as_uri())
    assert body_contrast(browser) > 7  # WCAG AAA
    emulate(browser)
