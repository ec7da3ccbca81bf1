"""Results folders that are torn, reordered or hostile: read and shown, or refused by an error that says why."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xent_metrics.analysis.intervals import delta_interval
from xent_metrics.analysis.report_documents import pack_documents
from xent_metrics.analysis.run_comparison import compare_runs
from xent_metrics.analysis.runs import read_run
from xent_metrics.errors import XentMetricsError
from xent_metrics.hosts.lm_eval.command import parse_metrics
from xent_metrics.hosts.lm_eval.rescore import rescore
from xent_metrics.hosts.lm_eval.rescored_run import write_rescored
from xent_metrics.view.export import export_site
from xent_metrics.view.folder import RunFolder
from xent_metrics.view.site import Site

DATE = "2026-11-01T12-00-00.000000"
NAMES = st.one_of(
    st.sampled_from(["", "..", "../x", "/x", "a/b", "a\\b", "x" * 300, "a\0b", "\ud800", ",", "x,none", "<b>", "\r\n"]),
    st.text(max_size=8),
)
NUMBERS = st.one_of(
    st.floats(), st.integers(), st.sampled_from([10**400, -(10**400), 2**63, -(2**63) - 1, 1e308, 5e-324, -0.0])
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, NAMES),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def logged(token_runs):
    """Run a, and what the files of run b hold."""
    first, second = token_runs
    [results], [samples] = second.rglob("results_*"), second.rglob("samples_*")
    return Logged(read_run(first), json.loads(results.read_bytes()), samples.read_bytes())


class Logged(tuple):
    """Has a short repr, which Hypothesis makes of every example."""

    def __new__(cls, *parts):
        return super().__new__(cls, parts)

    def __repr__(self):
        return "logged"


def places(node, before=()):
    """The paths to the values in a JSON document that aren't within a list of more than ten."""
    yield before
    items = node.items() if isinstance(node, dict) else enumerate(node[:10]) if isinstance(node, list) else ()
    for key, value in items:
        yield from places(value, (*before, key))


def spoilt(draw, document):
    """A copy in which a few values and names are others."""
    changed = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(0, 3))):
        *path, last = draw(st.sampled_from(list(places(changed))[1:] or [("nothing",)]))
        at = changed
        for key in path:
            at = at[key]
        if isinstance(at, dict) and draw(st.booleans()):
            at[draw(NAMES)] = at.pop(last, None)
        else:
            at[last] = draw(VALUES)
    return changed


def torn(draw, data: bytes) -> bytes:
    """Bytes that end too early, that have others in between, or whose lines are in another order, or there twice."""
    if draw(st.booleans()):
        data = data[: draw(st.integers(0, len(data)))]
    if draw(st.booleans()):
        place = draw(st.integers(0, len(data)))
        data = data[:place] + draw(st.binary(max_size=6)) + data[place + draw(st.integers(0, 6)) :]
    if draw(st.booleans()):
        lines = data.splitlines(keepends=True)
        data = b"".join(draw(st.lists(st.sampled_from(lines), max_size=12))) if lines else data
    return data


def renamed(results, name):
    """The results with the task's name in every place where it stands."""
    return {
        key: {name: value["t"]} if isinstance(value, dict) and "t" in value else value for key, value in results.items()
    }


def survives(first, folder: Path) -> None:
    """Read the run and do with it what commands do; only our own errors may come."""
    with suppress(XentMetricsError):
        run = read_run(folder)
        for task in run.tasks.values():
            for key, metric in task.metrics.items():
                states = task.states(key)
                if states is not None:
                    delta_interval(metric, states)
            list(task.token_columns)
        compare_runs(first, run, num_resamples=19)
        pack_documents([first, run], ["A", "B"])
        write_rescored(run, rescore(run, parse_metrics("perplexity"), skip_damaged=True), folder / "rescored")


def written(folder: Path, name: str, results: bytes, samples: bytes) -> None:
    (folder / f"results_{DATE}.json").write_bytes(results)
    with suppress(OSError, ValueError):  # the name can't be a file's
        (folder / f"samples_{name}_{DATE}.jsonl").write_bytes(samples)


@given(st.data())
def test_whatever_the_files_hold(logged, data):
    first, results, samples = logged
    draw = data.draw
    documents = [json.loads(line) for line in samples.splitlines()]
    place = draw(st.integers(0, len(documents) - 1))
    documents[place] = spoilt(draw, documents[place])
    lines = "".join(json.dumps(each) + "\n" for each in documents).encode()
    spoilt_results = json.dumps(spoilt(draw, results)).encode()
    with TemporaryDirectory() as folder:
        written(
            Path(folder), "t", torn(draw, spoilt_results) if draw(st.booleans()) else spoilt_results, torn(draw, lines)
        )
        survives(first, Path(folder))


@given(NAMES)
def test_whatever_a_task_is_called(logged, name):
    first, results, samples = logged
    with TemporaryDirectory() as folder:
        written(Path(folder), name, json.dumps(renamed(results, name)).encode(), samples)
        survives(first, Path(folder))
        assert {path.name[:8] for path in Path(folder).iterdir()} <= {"results_", "samples_", "rescored"}


@settings(max_examples=max(settings().max_examples // 10, 3))
@given(st.data())
def test_every_page_of_whatever_the_files_hold(logged, data):
    _, results, samples = logged
    with TemporaryDirectory() as folder:
        written(Path(folder), "t", json.dumps(spoilt(data.draw, results)).encode(), torn(data.draw, samples))
        export_site(Site(RunFolder(Path(folder)), most_documents=2), Path(folder) / "site")
