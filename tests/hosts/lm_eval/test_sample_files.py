"""Samples saved as Parquet: the run that JSON lines hold, to the last bit."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import re

import pytest
import torch
from support.lm_eval import to_caplog
from support.rescored import ASKED, OVER_CHOICES, LoggingLM, write_run
from typer.testing import CliRunner

from xent_metrics.analysis.report import write_report
from xent_metrics.analysis.runs import read_run
from xent_metrics.cli.app import app
from xent_metrics.hosts.lm_eval import sample_files
from xent_metrics.hosts.lm_eval.rescore import rescore
from xent_metrics.hosts.lm_eval.rescored_run import write_rescored

METRICS = [{"metric": "cross_entropy"}, {"metric": "bits_per_byte"}]
KINDS = ("loglikelihood", "loglikelihood_rolling", "multiple_choice")

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """The folders of one run saved as JSON lines and as Parquet, with float64 scores for questions."""
    base = tmp_path_factory.mktemp(request.param)
    dtype = torch.float64 if request.param == "multiple_choice" else torch.float32
    asked = [*METRICS, *(OVER_CHOICES if request.param == "multiple_choice" else ())]
    return [
        write_run(base / name, request.param, asked, LoggingLM(dtype, in_parquet=name == "parquet"))
        for name in ("json", "parquet")
    ]


def the_task(folder):
    run = read_run(folder)
    assert run.problems == []
    return run.tasks["t"]


def plain(results):
    """Results as lm-eval writes those without tokens."""
    if isinstance(results, list):
        return [plain(each) for each in results]
    return str(json.loads(results)["loglikelihood"]) if results.startswith("{") else results


def shown(folder):
    """The documents in a report of a run."""
    write_report([read_run(folder)], folder / "report.html")
    [data] = re.findall(r'<script id="data"[^>]*>(.*?)</script>', (folder / "report.html").read_text(), re.DOTALL)
    return gzip.decompress(base64.b64decode(data))


def test_one_file_takes_the_place_of_the_other(both):
    lines, parquet = ([file.suffix for file in each.rglob("samples_*")] for each in both)
    assert (lines, parquet) == ([".jsonl"], [".parquet"])


def test_what_was_logged_is_the_same(both):
    through_json, in_parquet = (the_task(folder) for folder in both)
    assert len(in_parquet.samples) == len(through_json.samples) > 0
    for ours, theirs in zip(in_parquet.samples, through_json.samples, strict=True):
        assert ours.key == theirs.key
        assert ours.tokens == theirs.tokens
        assert ours.raw == {**theirs.raw, "resps": plain(theirs.raw["resps"])}
    for key in through_json.metrics:
        assert torch.equal(in_parquet.states(key), through_json.states(key))


def test_other_metrics_of_both_have_the_same_bits(both, tmp_path):
    values = []
    for place, folder in enumerate(both):
        run = read_run(folder)
        found = rescore(run, ASKED)
        values.append(found[0].values)
        write_rescored(run, found, tmp_path / str(place))
    assert values[0] == values[1]
    again = [the_task(tmp_path / name) for name in "01"]
    assert [sample.tokens for sample in again[1].samples] == [sample.tokens for sample in again[0].samples]
    assert again[1].values == again[0].values


def test_reports_intervals_and_comparisons_are_the_same(both, tmp_path):
    assert shown(both[0]) == shown(both[1])
    printed = []
    for folder in both:
        for command in (["intervals", str(folder), "--json"], ["compare", *map(str, both), "--json"]):
            result = CliRunner().invoke(app, command, catch_exceptions=False)
            printed.append(result.stdout.replace(str(folder), ""))
    assert printed[0] == printed[2]
    assert all(row["difference"] == 0 for row in json.loads(printed[1])[0]["comparisons"])


def test_questions_list_their_tokens_once_in_lines(tmp_path):
    folder = write_run(tmp_path, "multiple_choice", METRICS)
    [path] = folder.rglob("samples_*.jsonl")
    for line in path.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        for logged, filtered in zip(sample["resps"], sample["filtered_resps"], strict=True):
            found = json.loads(logged[0][0])
            assert found["tokens"]
            assert float(filtered[0]) == found["loglikelihood"]


def test_what_cannot_be_written_is_saved_as_lines(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(sample_files, "write_parquet_samples", full)
    with caplog.at_level(logging.WARNING):
        folder = write_run(tmp_path, "loglikelihood", METRICS, LoggingLM(in_parquet=True))
    assert "can't be written, so that the samples are saved as JSON lines: no space left" in caplog.text
    assert all(sample.tokens for sample in the_task(folder).samples)


def test_an_evaluation_survives_an_output_path_that_cannot_be_written_to(tmp_path, caplog, monkeypatch):
    to_caplog(monkeypatch, caplog)
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.INFO):
        write_run(tmp_path / "file" / "runs", "loglikelihood", METRICS, LoggingLM(in_parquet=True))
    assert "can't be written, so that the samples are saved as JSON lines: [Errno 20] Not a directory" in caplog.text
    assert "Could not save sample results" in caplog.text  # lm-eval's own warning
