"""The report in a real browser: hostile text stays text, and documents can be found and read by keyboard."""

from __future__ import annotations

import errno
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from support.browser import body_contrast, chromium, open_page
from support.lm_eval import ScoredBigramLM, config, evaluate, saved
from support.logged_runs import HOSTILE, listed, write_run
from typer.testing import CliRunner

from xent_metrics import TokenScores
from xent_metrics.analysis.intervals import delta_interval
from xent_metrics.analysis.logged import choices_in
from xent_metrics.analysis.report import without_tokens, write_report
from xent_metrics.analysis.run_comparison import compare_runs
from xent_metrics.analysis.runs import Run, TaskRun, read_run
from xent_metrics.analysis.samples import Sample
from xent_metrics.cli.app import app
from xent_metrics.hosts.lm_eval import XentTask
from xent_metrics.hosts.lm_eval.models.logged_tokens import LoggedRolling


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def opened(browser, page: Path) -> float:
    """Seconds until the page is ready."""
    return open_page(browser, page.as_uri())


@pytest.fixture(scope="module")
def page(token_runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    arguments = ["report", *map(str, token_runs), "-o", str(path), "--title", "A & <b>B</b>", "--domain", "kind"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return path


def test_hostile_text_stays_text(page, browser):
    opened(browser, page)
    assert browser.title == "A & <b>B</b>"
    assert not browser.find_elements(
        By.CSS_SELECTOR, "main img, td b b, #browse ~ * b, #text svg, #text script, #list script"
    )
    shown = browser.find_element(By.ID, "list")
    texts = set()
    for place, _ in enumerate(shown.find_elements(By.TAG_NAME, "option")):
        Select(shown).select_by_index(place)
        texts.add(browser.execute_script("return document.getElementById('text').textContent"))
    assert texts >= set(HOSTILE)
    assert browser.title == "A & <b>B</b>"
    assert not [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]]


def test_the_page_holds_no_text_of_documents_as_markup(page):
    source = page.read_text(encoding="utf-8")
    assert "document.title='broken'" not in source
    assert len(re.findall("<script", source)) == 2
    assert not re.findall(r"(?:src|href)=[\"']?https?:", source)


def test_no_script_but_the_pages_own_runs(page, browser):
    """By its policy, even if some text got into it as markup."""
    opened(browser, page)
    assert browser.find_elements(By.CSS_SELECTOR, "#list option")  # its own did
    script = (
        "const put = document.createElement('script'); put.textContent = 'window.ran = true'; document.body.append(put)"
    )
    browser.execute_script(script)
    assert not browser.execute_script("return window.ran")


def test_values_differences_and_plots_are_shown(page, browser, token_runs):
    opened(browser, page)
    body = browser.find_element(By.TAG_NAME, "main").text
    value = read_run(token_runs[0]).tasks["t"].values["cross_entropy"]
    assert f"cross_entropy\nnats per token {value:.5g} ±" in body
    assert "B − A" in body
    labels = {picture.get_attribute("aria-label") for picture in browser.find_elements(By.TAG_NAME, "figure")}
    assert labels == {
        "Reliability of A",
        "Reliability of B",
        "Loss by position",
        "Loss by token frequency",
        "cross_entropy by kind",
    }


def test_p_values_are_those_of_xent_compare(browser, runs, tmp_path):
    base, _ = runs  # of so many documents that the resamples are drawn
    read = read_run(base / "a"), read_run(base / "b")
    write_report(read, tmp_path / "page.html")
    opened(browser, tmp_path / "page.html")
    cells = browser.find_elements(By.CSS_SELECTOR, ".values td[data-column='p value, Holm']")
    results = [row.result for row in compare_runs(*read)]
    assert [cell.text.split() for cell in cells] == [[f"{each.p_value:.3g}", f"{each.p_holm:.3g}"] for each in results]
    assert all(each.p_holm > each.p_value for each in results)


def test_a_narrow_screen_holds_the_page(browser, page, token_runs, tmp_path):
    other = tmp_path / "other.html"
    write_run(tmp_path / "run", metric_list=[{"metric": "cross_entropy"}, {"metric": "bits_per_byte"}])
    write_report([read_run(token_runs[0]), read_run(tmp_path / "run")], other)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    for each in (page, other):
        opened(browser, each)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
        for part in browser.find_elements(By.CSS_SELECTOR, ".values td, .plots svg, select, .reasons li"):
            assert part.rect["x"] + part.rect["width"] <= 400
        cell = browser.find_element(By.CSS_SELECTOR, ".values td[data-column='A']")
        assert "A" in browser.execute_script("return getComputedStyle(arguments[0], '::before').content", cell)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_reason_is_said_once_for_all_metrics(browser, token_runs, tmp_path):
    write_run(tmp_path, metric_list=[{"metric": "cross_entropy"}, {"metric": "bits_per_byte"}])
    write_report([read_run(run) for run in (*token_runs, tmp_path)], tmp_path / "page.html")
    opened(browser, tmp_path / "page.html")
    cells = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "td.reason")]
    reasons = [reason.text for reason in browser.find_elements(By.CSS_SELECTOR, ".reasons li")]
    assert cells == ["not compared [1]", "not compared [1]", "not compared [2]"]
    assert reasons[0].startswith("[1] the runs saw different documents: 0 in both, 10 only in A, 24 only in C.")
    assert reasons[1:] == ["[2] C doesn't have this metric"]


def test_tokens_can_be_read_by_keyboard(page, browser):
    opened(browser, page)
    find = browser.find_element(By.ID, "find")
    find.send_keys("text 0")
    for control in ("task", "order", "by", "list", "text"):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        assert browser.switch_to.active_element.get_attribute("id") == control
    tokens = browser.switch_to.active_element
    tokens.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ARROW_RIGHT)
    detail = browser.find_element(By.ID, "detail").text
    one = r'\d+\.\d\d nats, probability \d+\.\d\d %\n +likely: "e" 50\.0 % +"</script>" 25\.0 %'
    assert re.fullmatch(rf'"e"\nA: {one}\nB: {one}', detail)


def test_documents_are_ordered_and_coloured_by_the_difference(page, browser, token_runs):
    opened(browser, page)
    losses = [
        {sample.raw["doc"]["text"]: sample.tokens.mean_nll for sample in read_run(run).tasks["t"].samples}
        for run in token_runs
    ]
    apart = {text: losses[1][text] - loss for text, loss in losses[0].items()}
    chosen = Select(browser.find_element(By.ID, "list"))

    def first_text():
        chosen.select_by_index(0)
        return browser.execute_script("return document.getElementById('text').textContent")

    for order, text in (
        ("highest loss first", max(losses[0], key=losses[0].get)),
        ("B worse than A", max(apart, key=apart.get)),
        ("B better than A", min(apart, key=apart.get)),
    ):
        Select(browser.find_element(By.ID, "order")).select_by_visible_text(order)
        assert first_text() == text
    Select(browser.find_element(By.ID, "by")).select_by_visible_text("loss of B minus that of A")
    assert first_text() == min(apart, key=apart.get)
    colours = {
        span.get_attribute("style").partition("--")[2][:4]
        for span in browser.find_elements(By.CSS_SELECTOR, "#text span")
    }
    assert colours == {"cool", "heat"}
    assert browser.find_element(By.ID, "least").text == "−4 nats"


def test_a_question_shows_its_context_choices_and_answer(browser, tmp_path):
    question = {"question": "Which?", "choices": ["no <b>one</b>", "this", "that"], "gold": 1}
    task = XentTask(config("multiple_choice", [question, question], [{"metric": "cross_entropy", "over": "choices"}]))
    saved(evaluate(task, ScoredBigramLM()), tmp_path)
    write_report([read_run(tmp_path)], tmp_path / "page.html")
    opened(browser, tmp_path / "page.html")
    assert browser.find_element(By.ID, "context").text == "Which?"
    assert browser.find_element(By.ID, "text").get_property("textContent") == " this"
    head, *rows = browser.find_elements(By.CSS_SELECTOR, "#choices tr")
    assert head.text == "choice ln p in A"
    [sample, _] = read_run(tmp_path).tasks["t"].samples
    shown = [
        f"{'✓ ' if choice.is_gold else ''}{choice.text.strip()} {choice.loglikelihood:.2f}"
        for choice in choices_in(sample.raw)
    ]
    assert [row.text for row in rows] == shown
    assert [choice.is_gold for choice in choices_in(sample.raw)] == [False, True, False]


def test_light_and_dark_schemes_have_contrast(page, browser):
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        opened(browser, page)
        assert body_contrast(browser) > 7  # WCAG AAA
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_ten_thousand_documents_open(browser, tmp_path):
    generator = torch.Generator().manual_seed(0)
    samples = []
    for number in range(10_000):
        size = 60 + number % 80
        nll = torch.rand(size, generator=generator) * 6
        scores = TokenScores(
            nll=nll, counted=torch.ones(size, dtype=torch.bool), target=torch.arange(size), correct=nll < 1
        )
        logged = str(LoggedRolling(scores, listed(scores, [f" w{(number * i) % 997}" for i in range(size)])))
        samples.append(Sample(str(number), {"doc": {}, "resps": [[logged]], "target": "", "arguments": {}}))
    run = Run(tmp_path / "results.json", "large", {"t": TaskRun("t", 1, {}, {}, {}, samples)}, [])
    path = tmp_path / "large.html"
    write_report([run], path)
    assert path.stat().st_size < 20e6
    opened(browser, path)
    assert browser.execute_script("return document.getElementById('list').options.length") == 10_000
    note = browser.find_element(By.CSS_SELECTOR, "#browse + p").text
    assert re.search(r"only for the documents with the highest loss; [\d,]+ others have none", note)


def test_a_missing_domain_is_noted_and_the_rest_is_written(token_runs, tmp_path):
    path = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(token_runs[0]), "-o", str(path), "--domain", "topic"]).exit_code == 0
    assert "Not plotted by topic: task t: not every document has the field &#39;topic&#39;" in path.read_text(
        encoding="utf-8"
    )


def test_an_interval_that_may_not_cover_says_so(tmp_path, token_runs, monkeypatch):
    noted = lambda *given: replace(delta_interval(*given), note="a few documents decide it")  # noqa: E731
    monkeypatch.setattr("xent_metrics.analysis.report.delta_interval", noted)
    write_report([read_run(token_runs[0])], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("⚠ a few documents decide it") == 1  # below the table, once for all metrics
    assert " ⚠</small>" in page


def test_a_report_that_fails_leaves_the_old_page(tmp_path, token_runs, monkeypatch):
    page = tmp_path / "report.html"
    page.write_text("old")
    run = read_run(token_runs[0])
    run.model = "a lone surrogate \ud800"
    write_report([run], page)
    assert r"a lone surrogate \ud800" in page.read_text(encoding="utf-8")

    def full(path, data):
        raise OSError("No space left on device")

    before = page.read_bytes()
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_report([run], page)
    assert page.read_bytes() == before


def test_a_report_with_tokens_lacks_nothing_and_names_the_origin_of_a_rescored_run(token_runs, tmp_path):
    run = read_run(token_runs[0])
    assert without_tokens([run]) == ""
    rescored = replace(run, results=run.results | {"rescored": {"run": "runs/<first>"}})
    write_report([rescored], tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert ", rescored from runs/&lt;first&gt;</small>" in page
    assert '<th scope="col">A <small>± s.e.<br>95 % interval</small></th>' in page  # a name for each quantity of a cell
    assert "Point at a token" in page
    assert page.count("<figcaption>Bars: 95 % interval over documents; a point without one rests on too few.") == 2


def test_nothing_is_computed_for_a_page_that_cannot_be_written(tmp_path, monkeypatch):
    def read_only(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    monkeypatch.setattr("xent_metrics.analysis.report.compare_all", None)
    with pytest.raises(OSError, match=r"Read-only file system: '.*page\.html'"):
        write_report([], tmp_path / "page.html")
