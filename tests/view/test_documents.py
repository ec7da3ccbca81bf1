"""Documents of a task and the tokens of a document, as they were logged."""

import math
from dataclasses import replace

import pytest
from support.lm_eval import ScoredBigramLM, config, evaluate, saved
from support.logged_runs import HOSTILE, TOKEN_TEXTS
from support.result_files import write_results

from xent_metrics.analysis.intervals import delta_interval
from xent_metrics.analysis.runs import read_run
from xent_metrics.analysis.token_view import by_position
from xent_metrics.hosts.lm_eval import XentTask
from xent_metrics.view.documents import DOCUMENTS_PER_PAGE, document, documents
from xent_metrics.view.folder import RunFolder
from xent_metrics.view.links import PageNotFoundError, page_parts


@pytest.fixture(scope="module")
def opened(written):
    """The folder, a run that logged tokens, and its task."""
    folder = RunFolder(written)
    run = folder.snapshot().runs[1]
    return folder, run, read_run(run.path).tasks["t"]


def wanted(row):
    return page_parts(row["href"]).slugs[-1]


def test_values_have_the_jackknifes_intervals(opened):
    folder, run, task = opened
    shown = documents(folder, run, "t", 1, None)
    found = delta_interval(task.metrics["cross_entropy"], task.states("cross_entropy"))
    [row] = [row for row in shown["values"] if row["metric"] == "cross_entropy"]
    assert row["interval"] == f"{found.low:.5g} … {found.high:.5g}"
    assert row["unit"] == "nats per token"


def test_an_interval_that_may_not_cover_says_so(opened, monkeypatch):
    folder, run, _ = opened
    noted = lambda *given: replace(delta_interval(*given), note="a few documents decide it")  # noqa: E731
    monkeypatch.setattr("xent_metrics.view.documents.delta_interval", noted)
    shown = documents(folder, run, "t", 1, None)
    assert {row.get("note") for row in shown["values"]} >= {"a few documents decide it"}


def test_documents_come_by_loss_and_at_most_as_many_as_wanted(opened):
    folder, run, task = opened
    shown = documents(folder, run, "t", 1, None)
    losses = sorted((sample.tokens.mean_nll for sample in task.samples), reverse=True)
    assert [row["loss"] for row in shown["rows"]] == [f"{loss:.5g}" for loss in losses]
    few = documents(folder, run, "t", 1, 3)
    assert few["rows"] == shown["rows"][:3]
    assert (few["shown"], few["documents"]) == (3, len(TOKEN_TEXTS))
    assert documents(folder, run, "t", 2, None)["rows"] == []
    assert len(TOKEN_TEXTS) < DOCUMENTS_PER_PAGE


def test_the_loss_by_position_is_that_of_the_report(opened):
    folder, run, task = opened
    labels, intervals = by_position(task)
    position, frequency = documents(folder, run, "t", 1, None)["charts"]
    assert (position.title, frequency.title) == ("Loss by position", "Loss by token frequency")
    assert [tick.label for tick in position.x_ticks] == labels
    assert [dot.title.split(": ")[1].split(" ")[0] for dot in position.lines[0].dots] == [
        f"{each.value:.5g}" for each in intervals
    ]


def test_every_token_of_a_document_is_there_with_its_loss(opened):
    folder, run, task = opened
    texts = set()
    for row in documents(folder, run, "t", 1, None)["rows"]:
        shown = document(folder, run, "t", wanted(row), None)
        texts.add("".join(text for text, _, _ in shown["tokens"]))
        assert shown["loss"] == row["loss"]
    assert texts == set(TOKEN_TEXTS) > set(HOSTILE)
    text, level, said = shown["tokens"][1]
    nll = next(s.tokens.nll[1] for s in task.samples if s.tokens.text == "".join(t for t, _, _ in shown["tokens"]))
    assert said == (
        f'"{text}": {nll:.2f} nats, probability {100 * math.exp(-nll):.2f} %\nlikely: "e" 50.0 %   "</script>" 25.0 %'
    )
    assert level == f"h{round(15 * min(nll / 8, 1))}"


def test_documents_lead_to_each_other(opened):
    folder, run, _ = opened
    rows = documents(folder, run, "t", 1, None)["rows"]
    first, second = (document(folder, run, "t", wanted(row), None) for row in rows[:2])
    assert (first["before"], first["after"]) == ("", rows[1]["href"])
    assert second["before"] == rows[0]["href"]


def test_a_document_that_is_not_shown_is_not_found(opened):
    folder, run, _ = opened
    last = documents(folder, run, "t", 1, None)["rows"][-1]
    for slug, most in (("0" * 16, None), (wanted(last), 3)):
        with pytest.raises(PageNotFoundError, match="has no such document of t"):
            document(folder, run, "t", slug, most)


def test_a_question_has_its_context_and_choices(tmp_path):
    question = {"question": "Which?", "choices": ["no <b>one</b>", "this"], "gold": 1}
    task = XentTask(config("multiple_choice", [question], [{"metric": "cross_entropy", "over": "choices"}]))
    saved(evaluate(task, ScoredBigramLM()), tmp_path)
    folder = RunFolder(tmp_path)
    [run] = folder.snapshot().runs
    [row] = documents(folder, run, "t", 1, None)["rows"]
    shown = document(folder, run, "t", wanted(row), None)
    assert shown["context"] == "Which?"
    assert [(choice["text"].strip(), choice["is_gold"]) for choice in shown["choices"]] == [
        ("no <b>one</b>", False),
        ("this", True),
    ]


def test_a_run_without_samples_says_so(tmp_path):
    write_results(tmp_path, {"t": {"acc": 0.5}})
    folder = RunFolder(tmp_path)
    shown = documents(folder, folder.snapshot().runs[0], "t", 1, None)
    assert shown["rows"] == shown["charts"] == []
    assert [row["reason"] for row in shown["values"]] == ["evaluate with --log_samples"]
    [problem] = shown["problems"]
    assert problem.startswith("task t: no samples beside the results (samples_t_2026-11-01T12-00-00.000000.jsonl")
