"""The report in a real browser: hostile text stays text, documents can be read by keyboard, thousands of them open."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path

import pytest
import torch
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from support.lm_eval import TABLE, ScoredBigramLM, config, evaluate, saved
from typer.testing import CliRunner

from xent_metrics import TokenScores, score_tokens
from xent_metrics.analysis.logged import choices_in
from xent_metrics.analysis.report import write_report
from xent_metrics.analysis.runs import Run, Sample, TaskRun, read_run
from xent_metrics.analysis.token_view import by_domain, by_frequency, by_position
from xent_metrics.cli.app import app
from xent_metrics.errors import ComparisonError
from xent_metrics.hosts.lm_eval import XentTask
from xent_metrics.hosts.lm_eval.models.logged_tokens import LoggedRolling

HOSTILE = [
    "</script><script>document.title='broken'</script>",
    "<img src=x onerror=\"document.title='broken'\">",
    "\"><svg onload=document.title='broken'> &lt;b&gt; {{ 7 * 7 }} ${document.title='broken'}",
    "<!--<script> ]]> \u2028 \u202e 🙂 é",
]
TEXTS = HOSTILE + [f"text {n} of many words " * (n + 1) for n in range(6)]
METRICS = [{"metric": "cross_entropy"}, {"metric": "bits_per_byte"}, {"metric": "expected_calibration_error"}]


def listed(scores, texts):
    """Tokens as models list them."""
    columns = zip(texts, scores.target.tolist(), scores.nll.tolist(), strict=True)
    return [
        {"text": text, "id": i, "nll": nll, "alternatives": [["e", 0.5], ["</script>", 0.25]]}
        for text, i, nll in columns
    ]


class LoggingLM(ScoredBigramLM):
    """Logs a token for each character, with the model's temperature as the only difference between two."""

    def __init__(self, temperature=1.0):
        super().__init__()
        self.temperature = temperature

    def _scored(self, context, text, kind):
        data = list(b"\n" + context.encode() + text.encode())
        size = len(text.encode())
        before, target = torch.tensor(data[:-1])[-size:], torch.tensor(data)[-size:]
        scores = score_tokens(TABLE[before] / self.temperature, target, token_bytes=torch.ones(256, dtype=torch.long))
        texts = [c if i == len(c.encode()) - 1 else "" for c in text for i in range(len(c.encode()))]
        return LoggedRolling(scores, listed(scores, texts))


def evaluated(folder: Path, temperature: float = 1.0) -> Path:
    documents = [{"text": text, "kind": "hostile" if text in HOSTILE else "plain"} for text in TEXTS]
    task = XentTask(config("loglikelihood_rolling", documents, [dict(entry) for entry in METRICS]))
    saved(evaluate(task, LoggingLM(temperature)), folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    base = tmp_path_factory.mktemp("report")
    return [evaluated(base / name, temperature) for name, temperature in (("a", 1.0), ("b", 2.0))]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


def opened(browser, page: Path) -> float:
    """Seconds until the page is ready."""
    start = time.perf_counter()
    browser.get(page.as_uri())
    while browser.execute_script("return document.documentElement.dataset.ready") != "yes":
        assert time.perf_counter() - start < 60
        time.sleep(0.02)
    return time.perf_counter() - start


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    arguments = ["report", *map(str, runs), "-o", str(path), "--title", "A & <b>B</b>", "--domain", "kind"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return path


def test_tokens_are_read_back(runs):
    task = read_run(runs[0]).tasks["t"]
    for sample in task.samples:
        assert sample.tokens.text == sample.raw["doc"]["text"]
        assert sample.tokens.alternatives == [[("e", 0.5), ("</script>", 0.25)]] * len(sample.tokens)
        assert math.fsum(sample.tokens.nll) == pytest.approx(sample.raw["cross_entropy_stderr"]["nats"])


def test_loss_by_position_frequency_and_domain_adds_up(runs):
    task = read_run(runs[0]).tasks["t"]
    documents = [sample.tokens for sample in task.samples]
    labels, intervals = by_position(task)
    assert labels[:3] == ["0", "1–3", "4–15"]
    firsts = [document.nll[0] for document in documents]
    assert intervals[0].value == pytest.approx(sum(firsts) / len(firsts), rel=1e-12)
    labels, intervals = by_frequency(task)
    ids = [i for document in documents for i in document.ids]
    every = zip(ids, [nll for document in documents for nll in document.nll], strict=True)
    once = [nll for i, nll in every if ids.count(i) in range(1, 4)]
    assert labels[0] == "1–3"
    assert intervals[0].value == pytest.approx(sum(once) / len(once), rel=1e-12)
    labels, intervals = by_domain(task, "bits_per_byte", "kind")
    plain = [s.raw["bits_per_byte_stderr"] for s in task.samples if s.raw["doc"]["kind"] == "plain"]
    nats, size = (sum(sums[name] for sums in plain) for name in ("nats[num_bytes > 0]", "num_bytes"))
    assert dict(zip(labels, intervals, strict=True))["plain"].value == pytest.approx(nats / size / math.log(2))
    with pytest.raises(ComparisonError, match=r"not every document has 'topic'.*fields: \['kind', 'text'\]"):
        by_domain(task, "bits_per_byte", "topic")


def test_hostile_text_is_text(page, browser):
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


def test_values_differences_and_pictures_are_there(page, browser, runs):
    opened(browser, page)
    body = browser.find_element(By.TAG_NAME, "main").text
    value = read_run(runs[0]).tasks["t"].values["cross_entropy"]
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


def test_documents_are_found_ordered_and_coloured_by_the_difference(page, browser, runs):
    opened(browser, page)
    losses = [
        {sample.raw["doc"]["text"]: sample.tokens.mean_nll for sample in read_run(run).tasks["t"].samples}
        for run in runs
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


def test_a_question_shows_its_context_its_choices_and_the_right_one(browser, tmp_path):
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


def test_light_and_dark_have_contrast(page, browser):
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        opened(browser, page)
        ink, paper = (
            [
                int(part)
                for part in re.findall(r"\d+", browser.execute_script(f"return getComputedStyle(document.body).{name}"))
            ][:3]
            for name in ("color", "backgroundColor")
        )
        assert contrast(ink, paper) > 7  # WCAG AAA
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def contrast(first, second):
    """WCAG 2.1's contrast ratio."""

    def luminance(colour):
        parts = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


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
    assert re.search(r"for the documents of the highest loss, and not for [\d,]+ others", note)


def test_bad_places_and_fields_are_told_and_the_rest_is_written(runs, tmp_path):
    result = CliRunner().invoke(app, ["report", str(runs[0]), "-o", str(tmp_path / "missing" / "x.html")])
    assert "there is no folder" in str(result.exception)
    result = CliRunner().invoke(app, ["plot", "curve", "-o", str(tmp_path / "a.foo")])
    assert "expected a file that ends in" in str(result.exception)
    assert "got '.foo'" in str(result.exception)
    path = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(runs[0]), "-o", str(path), "--domain", "topic"]).exit_code == 0
    assert "Not drawn by topic: task t: not every document has &#39;topic&#39;" in path.read_text(encoding="utf-8")


def test_a_dollar_sign_in_a_domain_is_no_formula(runs, tmp_path):
    run = read_run(runs[0])
    for number, sample in enumerate(run.tasks["t"].samples):
        sample.raw["doc"]["kind"] = "$\\foo{$" if number % 2 else "plain"
    write_report([run], tmp_path / "page.html", domain="kind")
    assert "cross_entropy by kind" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_tokens_of_another_schema_are_none(runs):
    sample = read_run(runs[0]).tasks["t"].samples[0]
    other = json.loads(json.dumps(sample.raw).replace('\\"nll\\"', '\\"loss\\"'))
    assert Sample("x", other).tokens is None
    assert len(sample.tokens) > 0


def test_pictures_by_the_command(runs, tmp_path):
    for arguments, ending in (
        (["curve"], ".svg"),
        (["reliability", str(runs[0])], ".png"),
        (["position", str(runs[0])], ".svg"),
    ):
        path = tmp_path / f"{arguments[0]}{ending}"
        result = CliRunner().invoke(app, ["plot", *arguments, "-o", str(path)])
        assert result.exit_code == 0, result.output
        start = path.read_bytes()[:200]
        assert start.startswith(b"\x89PNG") or b"<svg" in path.read_bytes()
