"""The documents of a report, unpacked again as the page does it."""

from __future__ import annotations

import base64
import gzip
import json
import math

import pytest

from xent_metrics.analysis import report_documents
from xent_metrics.analysis.report_documents import pack_documents
from xent_metrics.analysis.runs import Run, TaskRun
from xent_metrics.analysis.samples import Sample


def sample(key: str, tokens: list[tuple[str, float]], alternatives=None) -> Sample:
    logged = [{"text": text, "nll": nll, "id": 0} for text, nll in tokens]
    if alternatives:
        logged = [token | {"alternatives": alternatives} for token in logged]
    return Sample(key, {"doc": {}, "resps": [[json.dumps({"tokens": logged})]], "target": "", "arguments": {}})


def run_of(*samples: Sample, name: str = "t") -> Run:
    return Run(None, "model", {name: TaskRun(name, 1, {}, {}, {}, list(samples))}, [])


def unpacked(*runs: Run):
    packed = pack_documents(runs, "AB"[: len(runs)])
    content = json.loads(gzip.decompress(base64.b64decode(packed.data)))
    assert packed.documents == len(content["documents"])
    return packed, content


def test_a_document_that_several_runs_have_is_one_entry_and_the_highest_loss_comes_first():
    first = run_of(sample("x", [("low", 0.5)]), sample("y", [("hi", 2.0), ("gh", 4.0)]))
    second = run_of(sample("y", [("high", 1.0)]), sample("z", [("only here", 2.0)]))
    _, content = unpacked(first, second)
    shown = [({letter: view["loss"] for letter, view in d["runs"].items()}) for d in content["documents"]]
    assert shown == [{"A": 3.0, "B": 1.0}, {"B": 2.0}, {"A": 0.5}]
    assert [d["number"] for d in content["documents"]] == [1, 1, 0]
    assert content["documents"][0]["runs"]["A"] == {"loss": 3.0, "text": "high", "lengths": [2, 2], "nll": [200, 400]}


def test_lengths_are_those_of_javascript_and_losses_that_json_lacks_are_there():
    _, content = unpacked(run_of(sample("x", [("🙂é", math.inf), ("\ud83d", math.nan)])))
    [document] = content["documents"]
    assert document["runs"]["A"]["lengths"] == [3, 1]
    assert document["runs"]["A"]["nll"] == [1_000_000, -1]


def test_alternatives_are_words_and_per_mille():
    likely = [["a", 0.5], ["b", 0.25]]
    packed, content = unpacked(run_of(sample("x", [("1", 1.0), ("2", 1.0)], likely), sample("y", [("3", 0.5)], likely)))
    assert packed.has_alternatives
    assert content["words"] == ["a", "b"]
    assert [d["runs"]["A"]["likely"] for d in content["documents"]] == [[[0, 500, 1, 250]] * 2, [[0, 500, 1, 250]]]


@pytest.mark.parametrize(
    ("limit", "value", "note"),
    [
        ("_LONGEST_TEXT", 3, "1 texts are truncated to 3 characters or 1,250,000 tokens."),
        ("_TOKENS", 4, "1 texts are truncated to 20,000 characters or 2 tokens."),
        ("_WITH_ALTERNATIVES", 4, "only for the documents with the highest loss; 1 others have none"),
    ],
)
def test_what_is_left_out_is_noted(monkeypatch, limit, value, note):
    run = run_of(sample("x", [("ab", 1.0)] * 3, [["a", 0.5]]), sample("y", [("c", 0.5)] * 2, [["a", 0.5]]))
    packed, content = unpacked(run)
    assert packed.notes == []
    monkeypatch.setattr(report_documents, limit, value)
    packed, fewer = unpacked(run)
    [said] = packed.notes
    assert note in said
    assert fewer != content


def test_without_tokens_the_text_and_the_choices_are_shown():
    arguments = {f"gen_args_{i}": {"arg_0": "Which?", "arg_1": f" {text}"} for i, text in enumerate(("no", "yes"))}
    raw = {"doc": {}, "resps": [[["-2.0", "False"]], [["-1.0", "False"]]], "target": "1", "arguments": arguments}
    raw |= {"nats_stderr": {"nats": 1.5, "tokens": 1.0}}
    packed, content = unpacked(run_of(Sample("x", raw)))
    [document] = content["documents"]
    assert not packed.has_alternatives
    assert (document["context"], document["choices"], document["gold"]) == ("Which?", [" no", " yes"], 1)
    assert document["text"] == " yes"
    assert document["runs"] == {"A": {"loss": 1.5, "choices": [-2.0, -1.0]}}
