"""Runs with a value of any kind where another belongs: read, compared and shown, or refused by an error that says why."""

from __future__ import annotations

import copy
import json
import random
import re
from contextlib import suppress

import pytest

from xent_metrics.analysis.intervals import delta_interval
from xent_metrics.analysis.report_documents import pack_documents
from xent_metrics.analysis.run_comparison import compare_runs
from xent_metrics.analysis.runs import read_run
from xent_metrics.errors import XentMetricsError

VALUES = [
    None, True, -1, 10**30, -(10**400), 1e308, float("nan"), float("inf"), -float("inf"), "x", "9" * 5000, "\ud800",
    [], {}, {"a": 1}, [1, [2]], [float("nan")] * 2,
]  # fmt: skip
READ = ("results", "configs", "versions", "higher_is_better", "n-samples", "model_name", "lm_eval_version")


def places(node, before=()):
    """The paths to all values in a JSON document."""
    yield before
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from places(value, (*before, key))


def spoilt(document, place, value):
    """A copy with another value at one place."""
    if not place:
        return value
    changed = copy.deepcopy(document)
    at = changed
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return changed


def some(document, seed, count, keep=lambda place: True):
    """Copies of a JSON document, each spoilt at another place."""
    draw = random.Random(seed)
    chances = [(place, value) for place in places(document) if keep(place) for value in VALUES]
    return [spoilt(document, *chance) for chance in draw.sample(chances, count)]


def survives(first, folder):
    """Read the run and do with it what commands do; only our own errors may come."""
    with suppress(XentMetricsError):
        run = read_run(folder)
        for task in run.tasks.values():
            for key, metric in task.metrics.items():
                states = task.states(key)
                if states is not None:
                    delta_interval(metric, states)
        compare_runs(first, run, num_resamples=99)
        pack_documents([first, run], ["A", "B"])


@pytest.fixture
def damaged_tokens(token_runs, tmp_path):
    """Run a, and a copy of run b to damage: its folder, its samples and results, and what they hold."""
    first, second = token_runs
    for file in second.rglob("*.json*"):
        (tmp_path / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    samples, results = next(tmp_path.glob("samples_*")), next(tmp_path.glob("results_*"))
    documents = [json.loads(line) for line in samples.read_text(encoding="utf-8").split("\n") if line]
    return read_run(first), tmp_path, (samples, documents), (results, json.loads(results.read_text()))


def test_results(damaged_tokens):
    first, folder, _, (path, results) = damaged_tokens
    for changed in some(results, 0, 60, lambda place: not place or place[0] in READ):
        path.write_text(json.dumps(changed))
        survives(first, folder)


@pytest.mark.filterwarnings("ignore:the logged tokens of a document")
def test_samples(damaged_tokens):
    first, folder, (path, documents), _ = damaged_tokens
    for changed in some(documents[5], 0, 60):
        path.write_text("".join(json.dumps(each) + "\n" for each in (*documents[:5], changed, *documents[6:])))
        survives(first, folder)


@pytest.mark.filterwarnings("ignore:the logged tokens of a document")
def test_logged_tokens(damaged_tokens):
    first, folder, (path, documents), _ = damaged_tokens
    tokens = json.loads(documents[5]["resps"][0][0])
    for changed in some(tokens, 0, 60, lambda place: place[1:2] in ((), (0,), (1,))):
        documents[5]["resps"][0][0] = json.dumps(changed)
        path.write_text("".join(json.dumps(each) + "\n" for each in documents))
        survives(first, folder)


def test_a_document_nested_too_deeply_is_skipped(damaged):
    folder, samples, results = damaged
    samples.write_text("[" * 100_000 + "\n" + samples.read_text(encoding="utf-8"), encoding="utf-8")
    assert "line 1 of" in read_run(folder).problems[0]
    results.write_text("[" * 100_000)
    with pytest.raises(XentMetricsError, match="nested too deeply"):
        read_run(folder)


@pytest.mark.parametrize("name", ["a/../b", "a/b", "a/../../b", "x" * 300, "a\0b"])
def test_the_name_of_a_task_leads_to_no_other_file(damaged, name):
    """Though the file is there that the name would lead to."""
    folder, samples, path = damaged
    results = json.loads(path.read_text(encoding="utf-8"))
    for part in ("results", "configs", "n-samples", "versions", "higher_is_better"):
        results[part] = {name: results[part]["t"]}
    inside = folder / "inside"
    (inside / "samples_a").mkdir(parents=True)
    (inside / path.name).write_text(json.dumps(results), encoding="utf-8")
    for near in (folder, inside, inside / "samples_a"):
        for other in (f"b_{path.stem[8:]}.jsonl", f"samples_a_{path.stem[8:]}.jsonl"):
            (near / other).write_bytes(samples.read_bytes())
    run = read_run(inside)
    assert len(run.tasks[name].samples) == 0
    assert re.search("can't be part of a file's|no samples beside the results", run.problems[0])


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"versions": [1]}, "the results' `versions` is of type list in place of an object"),
        ({"higher_is_better": 3}, "the results' `higher_is_better` is of type int"),
        ({"higher_is_better": {"t": True}}, "the results' `higher_is_better` of `t` is of type bool"),
        ({"n-samples": "x"}, "the results' `n-samples` is of type str"),
        ({"n-samples": {"t": {"effective": float("nan")}}}, "the results give nan as its number of documents"),
        ({"n-samples": {"t": {"effective": -1}}}, "the results give -1 as its number of documents"),
        ({"n-samples": {"t": {"effective": 10**400}}}, "the results give inf as its number of documents"),
        ({"configs": {"t": [1]}}, "its configuration is of type list"),
        ({"configs": {"t": {"metric_list": 3}}}, "its metric_list is of type int"),
        ({"configs": {"t": {"metric_list": [["acc"]]}}}, r"an entry of its metric_list names no metric: \['acc'\]"),
    ],
)
def test_what_is_no_object_or_number_is_named_and_the_rest_is_read(damaged, part, said):
    folder, _, path = damaged
    sound = read_run(folder)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | part), encoding="utf-8")
    run = read_run(folder)
    assert any(re.search(said, problem) for problem in run.problems), run.problems
    assert len([problem for problem in run.problems if re.search(said, problem)]) == 1
    assert run.tasks["t"].values == sound.tasks["t"].values
    assert len(run.tasks["t"].samples) == len(sound.tasks["t"].samples)


@pytest.mark.parametrize(
    "change", [{"id": -1}, {"id": 2**31}, {"id": float("inf")}, {"nll": -float("inf")}, {"nll": "1"}]
)
def test_a_document_with_tokens_that_are_none_says_so(damaged_tokens, change):
    _, folder, (path, documents), _ = damaged_tokens
    result = json.loads(documents[5]["resps"][0][0])
    result["tokens"][1] |= change
    documents[5]["resps"][0][0] = json.dumps(result)
    path.write_text("".join(json.dumps(each) + "\n" for each in documents))
    [task] = read_run(folder).tasks.values()
    with pytest.warns(UserWarning, match="the logged tokens of a document aren't read"):
        tokens = [sample.tokens for sample in task.samples]
    assert [place for place, found in enumerate(tokens) if found is None] == [5]
