"""lm-eval's own output files read back and compared, whole, damaged and foreign."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from lm_eval.api.task import ConfigurableTask
from support.lm_eval import TABLE, ScoredBigramLM, config, evaluate, saved
from typer.testing import CliRunner

from xent_metrics import score_tokens
from xent_metrics.analysis import compare
from xent_metrics.analysis.run_comparison import compare_runs
from xent_metrics.analysis.runs import read_run
from xent_metrics.cli.app import app
from xent_metrics.errors import ComparisonError
from xent_metrics.hosts.lm_eval import XentTask
from xent_metrics.sums.exact_sum import to_float

TEXTS = [f"document {n}: " + "the quick brown fox " * (n % 5 + 1) + chr(97 + n % 26) * n for n in range(24)]
METRICS = [
    {"metric": "bits_per_byte"},
    {"metric": "cross_entropy", "unit": "bits", "name": "bits_per_token"},
    {"metric": "expected_calibration_error", "num_bins": 5},
]


class WarmerLM(ScoredBigramLM):
    """The same model at another temperature."""

    def __init__(self, temperature):
        super().__init__()
        self.temperature = temperature

    def _scored(self, context, text, kind):
        data = list(b"\n" + context.encode() + text.encode())
        size = len(text.encode())
        before, target = torch.tensor(data[:-1])[-size:], torch.tensor(data)[-size:]
        bytes_ = torch.ones(256, dtype=torch.long)
        return kind(score_tokens(TABLE[before] / self.temperature, target, token_bytes=bytes_))


def run(folder, temperature=1.0, texts=TEXTS, metric_list=METRICS):
    """Evaluate and write the files."""
    task = XentTask(config("loglikelihood_rolling", [{"text": t} for t in texts], copy.deepcopy(metric_list)))
    return saved(evaluate(task, WarmerLM(temperature)), folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    found = {name: run(base / name, temperature) for name, temperature in (("a", 1.0), ("b", 2.0))}
    return base, found


@pytest.fixture
def damaged(runs, tmp_path):
    """A copy of run a whose samples a test may damage."""
    base, _ = runs
    for file in (base / "a").rglob("*.json*"):
        (tmp_path / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path, next(tmp_path.glob("samples_*")), next(tmp_path.glob("results_*"))


def test_what_was_logged_gives_the_values_that_lm_eval_printed(runs):
    base, found = runs
    task = read_run(base / "a").tasks["t"]
    assert len(task.samples) == len(TEXTS)
    for name, metric in task.metrics.items():
        states = task.states(name)
        assert torch.equal(metric.pack(metric.unpack(to_float(states[0]))), states[0])
        assert float(metric.value_of(states.sum(0))) == pytest.approx(found["a"][name], rel=1e-14)
        assert task.values[name] == found["a"][name]
        assert task.standard_errors[name] == found["a"][f"{name}_stderr"]


def test_two_runs_are_compared_on_the_same_documents_in_any_order(runs, damaged):
    base, found = runs
    folder, samples, _ = damaged
    samples.write_text("".join(reversed(samples.read_text(encoding="utf-8").splitlines(keepends=True))))
    first, second, shuffled = read_run(base / "a"), read_run(base / "b"), read_run(folder)
    rows = {row.metric: row for row in compare_runs(first, second, num_resamples=199)}
    assert set(rows) == {"bits_per_byte", "bits_per_token", "expected_calibration_error"}
    for name, row in rows.items():
        assert row.result.difference == pytest.approx(found["b"][name] - found["a"][name], rel=1e-12)
        states = first.tasks["t"].states(name), second.tasks["t"].states(name)
        assert row.result == compare(first.tasks["t"].metrics[name], *states, num_resamples=199)
    assert rows["bits_per_byte"].result.better == "B"  # warmer: nearer to uniform than a random table
    for row in compare_runs(first, shuffled, num_resamples=99):
        assert (row.result.difference, row.result.p_value) == (0.0, 1.0)


def test_other_documents_are_refused_with_the_reason(runs, tmp_path):
    base, _ = runs
    run(tmp_path, texts=TEXTS[2:])
    rows = compare_runs(read_run(base / "a"), read_run(tmp_path))
    assert all(row.result is None for row in rows)
    assert "the runs saw other documents: 22 in both, 2 only in A, 0 only in B" in rows[0].reason


def test_other_options_and_missing_metrics_are_refused_alone(runs, tmp_path):
    base, _ = runs
    other = [METRICS[0], {**METRICS[2], "num_bins": 10}]
    run(tmp_path, metric_list=other)
    rows = {row.metric: row for row in compare_runs(read_run(base / "a"), read_run(tmp_path), num_resamples=99)}
    assert rows["bits_per_byte"].result is not None
    assert rows["bits_per_token"].reason == "B doesn't have it"
    assert "its options differ" in rows["expected_calibration_error"].reason


def test_another_tokenizer_leaves_what_is_per_byte(damaged, runs):
    base, _ = runs
    folder, samples, _ = damaged
    documents = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    for document in documents:
        document["bits_per_token_stderr"]["tokens"] -= 1
    samples.write_text("".join(json.dumps(d) + "\n" for d in documents))
    rows = {row.metric: row for row in compare_runs(read_run(base / "a"), read_run(folder), num_resamples=99)}
    assert "the tokenizers differ" in rows["bits_per_token"].reason
    assert rows["bits_per_byte"].result is not None


def test_another_tokenizer_shows_in_documents_though_not_in_the_total(damaged, runs):
    base, _ = runs
    folder, samples, _ = damaged
    documents = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    documents[0]["bits_per_token_stderr"]["tokens"] -= 1
    documents[1]["bits_per_token_stderr"]["tokens"] += 1
    samples.write_text("".join(json.dumps(d) + "\n" for d in documents))
    rows = {row.metric: row for row in compare_runs(read_run(base / "a"), read_run(folder), num_resamples=99)}
    assert "2 of 24 documents are of another number of tokens in B" in rows["bits_per_token"].reason
    assert rows["bits_per_token"].value_a == read_run(base / "a").tasks["t"].values["bits_per_token"]


def test_documents_that_both_have_are_compared_on_request(damaged, runs):
    base, _ = runs
    folder, samples, _ = damaged
    lines = samples.read_bytes().splitlines(keepends=True)
    samples.write_bytes(b"".join(lines[:-1]) + lines[-1][:-2].rstrip(b"}") + "é".encode()[:1])  # within a character
    a, b = read_run(base / "a"), read_run(folder)
    assert "is cut off or not JSON" in b.problems[0]
    assert "or compare on those that both have (--shared-documents)" in compare_runs(a, b)[0].reason
    rows = compare_runs(a, b, num_resamples=99, shared_documents=True)
    assert [(row.result.documents, row.result.difference) for row in rows] == [(len(TEXTS) - 1, 0.0)] * len(rows)
    result = CliRunner().invoke(app, ["compare", str(base / "b"), str(folder), "--shared-documents", "--json"])
    [compared] = json.loads(result.stdout)
    assert {row["documents"] for row in compared["comparisons"]} == {len(TEXTS) - 1}


@pytest.mark.parametrize("spoilt", [None, "many", [1, None]])
def test_sums_that_are_no_numbers_are_none(damaged, runs, spoilt):
    base, _ = runs
    folder, samples, _ = damaged
    documents = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    documents[3]["bits_per_byte_stderr"]["num_bytes"] = spoilt
    samples.write_text("".join(json.dumps(d) + "\n" for d in documents))
    rows = {row.metric: row for row in compare_runs(read_run(base / "a"), read_run(folder), num_resamples=99)}
    assert (
        "the sums of B's documents are not in its samples: some of its samples lack them"
        in rows["bits_per_byte"].reason
    )
    assert rows["bits_per_token"].result is not None


def test_results_of_another_shape_and_lines_that_are_no_documents(damaged, runs):
    base, _ = runs
    folder, samples, results = damaged
    found = json.loads(results.read_text())
    results.write_text(json.dumps({**found, "versions": None, "higher_is_better": None}))
    samples.write_text('[1]\n{"doc_hash": "x"}\n' + samples.read_text(encoding="utf-8"), encoding="utf-8")
    read = read_run(folder)
    assert "line 1 of" in read.problems[0]
    assert "is no document" in read.problems[0]
    assert "is without 'target_hash'" in read.problems[1]
    assert "the task's versions differ: " in compare_runs(read_run(base / "a"), read)[0].reason


def test_lm_evals_own_metrics_are_compared_where_the_samples_hold_them(tmp_path):
    """acc is a mean, the weighted perplexities are ratios; what is neither is refused with the reason."""
    questions = [{"question": f"q{n}", "choices": [" a", " bb", f" {n}"], "gold": 0} for n in range(12)]
    metric_list = [{"metric": "acc"}, {"metric": "mcc"}]
    for name, temperature in (("a", 1.0), ("b", 3.0)):
        task = XentTask(config("multiple_choice", questions, copy.deepcopy(metric_list)))
        saved(evaluate(task, ScoredBigramLM() if name == "a" else BackwardsLM()), tmp_path / name)
        stock = [
            {"metric": metric, "aggregation": how, "higher_is_better": False}
            for metric, how in (("bits_per_byte", "bits_per_byte"), ("word_perplexity", "weighted_perplexity"))
        ]
        texts = ConfigurableTask(config=config("loglikelihood_rolling", [{"text": t} for t in TEXTS], stock))
        saved(evaluate(texts, WarmerLM(temperature)), tmp_path / f"rolling {name}")
    rows = {row.metric: row for row in compare_runs(read_run(tmp_path / "a"), read_run(tmp_path / "b"))}
    assert rows["acc"].result.difference == rows["acc"].value_b - rows["acc"].value_a != 0
    assert rows["mcc"].reason == "it is lm-eval's own, and not the mean of what the samples hold"
    runs = [read_run(tmp_path / f"rolling {name}") for name in "ab"]
    rows = {row.metric: row for row in compare_runs(*runs, num_resamples=99)}
    for name, row in rows.items():
        assert row.result.value_b == pytest.approx(runs[1].tasks["t"].values[name], rel=1e-12)
        assert row.result.better == "B"


class BackwardsLM(ScoredBigramLM):
    """Likes best what the other one likes least."""

    def _continuation(self, context, continuation):
        loglikelihood, _ = super()._continuation(context, continuation)
        return (-100 - loglikelihood, False)


def test_filters_are_kept_apart(damaged):
    folder, samples, results = damaged
    found = json.loads(results.read_text())
    found["results"]["t"] |= {
        "exact_match,strict": 0.25, "exact_match_stderr,strict": 0.1, "exact_match,loose": 0.5,
    }  # fmt: skip
    results.write_text(json.dumps(found))
    documents = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    more = [
        {**d, "filter": name, "exact_match": float(i % step == 0)}
        for name, step in (("strict", 4), ("loose", 2)) for i, d in enumerate(documents)
    ]  # fmt: skip
    samples.write_text("".join(json.dumps(d) + "\n" for d in documents + more))
    task = read_run(folder).tasks["t"]
    assert (task.values["exact_match,strict"], task.standard_errors["exact_match,strict"]) == (0.25, 0.1)
    assert "exact_match,loose" not in task.standard_errors
    assert len(task.samples) == len(TEXTS)
    assert {name: float(task.states(name).sum(0)[-1, 2]) for name in ("exact_match,strict", "exact_match,loose")} == {
        "exact_match,strict": 6.0, "exact_match,loose": 12.0,
    }  # fmt: skip


def test_intervals_by_the_command(runs):
    base, found = runs
    for options in ([], ["--bootstrap", "--num-resamples", "199"]):
        result = CliRunner().invoke(app, ["intervals", str(base / "a"), "--json", *options])
        rows = {row["metric"]: row for row in json.loads(result.stdout)}
        for name, row in rows.items():
            assert row["value"] == pytest.approx(found["a"][name], rel=1e-12)
            assert row["low"] < row["value"] < row["high"]
        shown = CliRunner().invoke(app, ["intervals", str(base / "a"), *options], env={"COLUMNS": "100"})
        assert "bits per byte" in shown.stdout


def test_a_line_that_is_cut_off_is_named_and_the_rest_read(damaged, runs):
    base, _ = runs
    folder, samples, _ = damaged
    lines = samples.read_text(encoding="utf-8").splitlines(keepends=True)
    samples.write_text("".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    found = read_run(folder)
    assert len(found.tasks["t"].samples) == len(TEXTS) - 1
    assert found.problems == [
        f"task t: line {len(TEXTS)} of {samples.name} is cut off or not JSON; the document is left out"
    ]
    assert "1 only in A" in compare_runs(read_run(base / "a"), found)[0].reason


def test_missing_samples_leave_the_values(damaged, runs):
    base, found = runs
    folder, samples, _ = damaged
    samples.unlink()
    read = read_run(folder)
    assert "no samples beside the results" in read.problems[0]
    assert read.tasks["t"].values["bits_per_byte"] == found["a"]["bits_per_byte"]
    assert all(row.result is None for row in compare_runs(read_run(base / "a"), read))


def test_what_is_not_lm_evals_is_said(damaged, tmp_path):
    folder, _, results = damaged
    results.write_text(json.dumps({"scores": {}, "lm_eval_version": "9.9"}))
    with pytest.raises(ComparisonError, match=r"expected lm-eval's results .* got scores, lm_eval_version.*9\.9"):
        read_run(folder)
    results.write_text('{"results": ')
    with pytest.raises(ComparisonError, match="not readable as JSON"):
        read_run(folder)
    with pytest.raises(ComparisonError, match=r"no results_\*\.json under it"):
        read_run(tmp_path / "nothing")


def test_runs_without_a_task_in_common_are_refused(runs, damaged):
    base, _ = runs
    folder, _, results = damaged
    found = json.loads(results.read_text(encoding="utf-8"))
    for part in ("results", "configs", "versions"):
        found[part] = {"u": found[part]["t"]}
    results.write_text(json.dumps(found))
    with pytest.raises(ComparisonError, match="share no task"):
        compare_runs(read_run(base / "a"), read_run(folder))


def test_the_command_prints_a_table_and_json(runs):
    base, found = runs
    arguments = ["compare", str(base / "a"), str(base / "b"), "--num-resamples", "99"]
    printed = CliRunner().invoke(app, arguments, env={"COLUMNS": "220"})
    assert printed.exit_code == 0, printed.output
    assert "bits per byte" in printed.output
    [pair] = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    first = next(row for row in pair["comparisons"] if row["metric"] == "bits_per_byte")
    assert first["value_a"] == pytest.approx(found["a"]["bits_per_byte"], rel=1e-14)
    assert first["better"] == "B"
    assert math.isfinite(first["documents_needed"])
    assert first["documents"] == len(TEXTS)


def test_units_over_choices_are_per_question(tmp_path):
    question = {"question": "Which?", "choices": ["no one", "this", "that"], "gold": 1}
    listed = [
        {"metric": "brier_score"},
        {"metric": "cross_entropy", "unit": "bits", "over": "choices"},
        {"metric": "token_accuracy", "over": "choices"},
        {"metric": "cross_entropy", "over": "gold", "name": "of_gold"},
    ]
    task = XentTask(config("multiple_choice", [question, question], listed))
    saved(evaluate(task, ScoredBigramLM()), tmp_path)
    units = {name: metric.value_unit for name, metric in read_run(tmp_path).tasks["t"].metrics.items()}
    assert units == {
        "brier_score": "squared error per question",
        "cross_entropy": "bits per question",
        "token_accuracy": "share of questions",
        "of_gold": "nats per token",
    }


def test_a_folder_of_several_runs_is_told(runs):
    """The newest of them would be anybody's."""
    base, _ = runs
    with pytest.raises(ComparisonError, match=r"holds runs in several folders; name one of them: \S+a\S*, \S+b"):
        read_run(base)
