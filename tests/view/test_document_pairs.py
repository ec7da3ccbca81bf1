"""Documents in two runs: by their difference of loss, and token by token."""

import pytest
from support.lm_eval import ScoredBigramLM, config, evaluate, saved
from support.logged_runs import TOKEN_TEXTS, write_run, write_token_run

from xent_metrics.analysis.runs import read_run
from xent_metrics.hosts.lm_eval import XentTask
from xent_metrics.view.document_pairs import document_pair, document_pairs, token_change
from xent_metrics.view.folder import RunFolder
from xent_metrics.view.links import PageNotFoundError, page_parts


@pytest.fixture(scope="module")
def opened(written):
    """The folder, the two runs that logged tokens, and their samples by key."""
    folder = RunFolder(written)
    runs = folder.snapshot().runs[1:3]
    samples = ({each.key: each for each in read_run(run.path).tasks["t"].samples} for run in runs)
    return folder, *runs, *samples


def test_documents_come_by_their_difference(opened):
    folder, a, b, in_a, in_b = opened
    shown = document_pairs(folder, a, b, "t", 1, None)
    differences = sorted((in_b[key].tokens.mean_nll - in_a[key].tokens.mean_nll for key in in_a), key=abs, reverse=True)
    assert [row["difference"] for row in shown["rows"]] == [f"{d:+.4g}".replace("-", "−") for d in differences]
    assert (shown["shared"], shown["in_each"]) == (len(TOKEN_TEXTS), (len(TOKEN_TEXTS),) * 2)
    assert document_pairs(folder, a, b, "t", 1, 2)["rows"] == shown["rows"][:2]
    assert document_pairs(folder, a, b, "t", 2, None)["rows"] == []
    assert a.name in shown["a"]["name"] != shown["b"]["name"]


def test_every_token_has_both_losses_and_the_colour_of_their_difference(opened):
    folder, a, b, in_a, in_b = opened
    row = document_pairs(folder, a, b, "t", 1, None)["rows"][0]
    shown = document_pair(folder, a, b, "t", page_parts(row["href"]).slugs[-1], None)
    [key] = [k for k, each in in_a.items() if each.tokens.text == "".join(text for text, _, _ in shown["tokens"])]
    both = zip(in_a[key].tokens.nll, in_b[key].tokens.nll, strict=True)
    assert [level for _, level, _ in shown["tokens"]] == [token_change(second - first) for first, second in both]
    nll = in_a[key].tokens.nll[1], in_b[key].tokens.nll[1]
    said = shown["tokens"][1][2].replace("−", "-")
    assert f"{nll[1] - nll[0]:+.4g} nats" in said
    assert f"\nA: {nll[0]:.2f} nats" in said
    assert f"\nB: {nll[1]:.2f} nats" in said
    assert shown["difference"] == row["difference"]


def test_pairs_lead_to_each_other_and_to_the_documents(opened):
    folder, a, b, *_ = opened
    rows = document_pairs(folder, a, b, "t", 1, None)["rows"]
    first, second = (document_pair(folder, a, b, "t", page_parts(row["href"]).slugs[-1], None) for row in rows[:2])
    assert (first["before"], first["after"], second["before"]) == ("", rows[1]["href"], rows[0]["href"])
    assert [page_parts(href).slugs[0] for href in first["documents"]] == [a.slug, b.slug]


def test_a_pair_that_is_not_shown_is_not_found(opened):
    folder, a, b, *_ = opened
    last = page_parts(document_pairs(folder, a, b, "t", 1, None)["rows"][-1]["href"]).slugs[-1]
    for slug, most in (("0" * 16, None), (last, 3)):
        with pytest.raises(PageNotFoundError, match="have no such document of t in common"):
            document_pair(folder, a, b, "t", slug, most)


def pair_of(tmp_path):
    folder = RunFolder(tmp_path)
    a, b = folder.snapshot().runs
    [task] = a.tasks
    rows = document_pairs(folder, a, b, task, 1, None)["rows"]
    return document_pair(folder, a, b, task, page_parts(rows[0]["href"]).slugs[-1], None), rows


def test_other_tokens_are_not_compared(tmp_path, monkeypatch):
    write_token_run(tmp_path / "a")
    with monkeypatch.context() as patched:
        patched.setattr("support.logged_runs.listed", lambda scores, texts: _merged(scores, texts))
        write_token_run(tmp_path / "b", 2.0)
    shown, _ = pair_of(tmp_path)
    assert shown["logged"]
    assert shown["tokens"] == []


def _merged(scores, texts):
    """One token for each two characters."""
    nll = scores.nll.tolist()
    return [
        {"text": "".join(texts[i : i + 2]), "id": i, "nll": sum(nll[i : i + 2]), "alternatives": []}
        for i in range(0, len(texts), 2)
    ]


def test_without_tokens_the_losses_are_those_of_the_sums(tmp_path):
    for name, temperature in (("a", 1.0), ("b", 2.0)):
        write_run(tmp_path / name, temperature)
    shown, rows = pair_of(tmp_path)
    assert not shown["logged"]
    assert all(row["difference"] != "—" for row in rows)


def test_questions_have_their_context(tmp_path):
    question = {"question": "Which?", "choices": ["no one", "this"], "gold": 1}
    for name in "ab":
        task = XentTask(config("multiple_choice", [question], [{"metric": "cross_entropy", "over": "choices"}]))
        saved(evaluate(task, ScoredBigramLM()), tmp_path / name)
    assert pair_of(tmp_path)[0]["context"] == "Which?"
