"""Other metrics from a run's logged tokens: the bits of having asked at once, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from support.lm_eval import CHOICES, PAIRS, ScoredBigramLM, config, evaluate, saved
from support.lm_eval_requests import request
from support.rescored import ASKED, OVER_CHOICES, LoggingLM, write_run

from xent_metrics.analysis.logged_results import results_in
from xent_metrics.analysis.runs import read_run
from xent_metrics.errors import ComparisonError, MetricOptionError, MissingScoreError, UnknownMetricError
from xent_metrics.hosts.lm_eval import XentTask
from xent_metrics.hosts.lm_eval.documents import DocumentSums
from xent_metrics.hosts.lm_eval.models.results import ScoredText
from xent_metrics.hosts.lm_eval.rescore import gold_choice, rescore

FEW = [{"metric": "bits_per_byte"}]
BY_TYPE = {
    "loglikelihood_rolling": ASKED,
    "loglikelihood": ASKED,
    "multiple_choice": [*ASKED, *OVER_CHOICES],
}


@pytest.fixture(scope="module")
def rolling(tmp_path_factory):
    """A run of a rolling task that logs its tokens."""
    return write_run(tmp_path_factory.mktemp("rolling"), "loglikelihood_rolling", FEW)


def copied(folder, target, change):
    """A copy of a run whose lines of samples went through `change`, a function of the list of lines."""
    for file in folder.rglob("*.json*"):
        text = file.read_text(encoding="utf-8")
        if file.name.startswith("samples"):
            text = "".join(f"{line}\n" for line in change(text.splitlines()))
        (target / file.name).write_text(text, encoding="utf-8")
    return read_run(target)


def check_equal_to_asking(few, asked, metrics):
    """The values, errors and sums of each document are those of the run that was asked for these metrics."""
    [found], then = rescore(read_run(few), metrics), read_run(asked).tasks["t"]
    assert [entry.name for entry in found.entries] == [entry.get("name", entry["metric"]) for entry in metrics]
    for place, entry in enumerate(found.entries):
        assert found.values[entry.name] == (then.values[entry.name], then.standard_errors[entry.name])
        for sample, values in zip(then.samples, found.documents, strict=True):
            assert float(values[place]) == sample.raw[entry.name]
            assert DocumentSums.of(entry.metric, values[place].sums) == sample.sums(entry.name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("output_type", list(BY_TYPE))
def test_values_have_the_bits_of_having_asked_at_once(output_type, dtype, tmp_path):
    few = write_run(tmp_path / "few", output_type, FEW, LoggingLM(dtype))
    asked = write_run(tmp_path / "asked", output_type, BY_TYPE[output_type], LoggingLM(dtype))
    check_equal_to_asking(few, asked, BY_TYPE[output_type])


def test_without_bytes_of_tokens_the_text_is_counted_as_in_the_run(tmp_path):
    metrics = [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}]
    runs = [write_run(tmp_path / name, "loglikelihood", listed, LoggingLM(num_bytes=False))
            for name, listed in (("few", FEW), ("asked", metrics))]  # fmt: skip
    check_equal_to_asking(*runs, metrics)


def test_the_gold_answer_of_a_generation_is_rescored(tmp_path):
    metrics = [{"metric": "token_accuracy"}, {"metric": "bits_per_byte"}]
    for name, listed in (("few", FEW), ("asked", metrics)):
        task = XentTask(config("generate_until", PAIRS, listed, xent_only=True))
        saved(evaluate(task, LoggingLM()), tmp_path / name)
    check_equal_to_asking(tmp_path / "few", tmp_path / "asked", metrics)


def test_gold_answers_of_another_field_are_refused(tmp_path):
    listed = [{"metric": "bits_per_byte", "doc_to_gold": "{{question}}!"}]
    task = XentTask(config("generate_until", PAIRS, listed, xent_only=True))
    saved(evaluate(task, LoggingLM()), tmp_path)
    with pytest.raises(ComparisonError, match="task t: its gold answers are those of doc_to_gold"):
        rescore(read_run(tmp_path), FEW)


def test_generated_texts_are_refused(tmp_path):
    class Generating(LoggingLM):
        def generate_until(self, requests):
            pairs = self.loglikelihood([request("loglikelihood", each.args[0], "so") for each in requests])
            return [ScoredText("so", each) for each in pairs]

    listed = [{"metric": "exact_match"}, {"metric": "perplexity", "over": "generated"}]
    saved(evaluate(XentTask(config("generate_until", PAIRS, listed)), Generating()), tmp_path)
    with pytest.raises(
        ComparisonError, match="task t: it logged generated texts, which can't be told from gold answers"
    ):
        rescore(read_run(tmp_path), FEW)


def test_metrics_over_the_choices_need_no_tokens(tmp_path):
    few = write_run(tmp_path / "few", "multiple_choice", [{"metric": "acc"}], ScoredBigramLM())
    asked = write_run(tmp_path / "asked", "multiple_choice", OVER_CHOICES, ScoredBigramLM())
    check_equal_to_asking(few, asked, OVER_CHOICES)
    with pytest.raises(ComparisonError, match=r"task t: no tokens in the samples; evaluate with .*log_tokens=true"):
        rescore(read_run(few), FEW)


def test_scores_that_are_nan_stay_nan(tmp_path):
    class BrokenLM(LoggingLM):
        def _scored(self, context, text, kind):
            result = super()._scored(context, text, kind)
            return self.results.rolling(result.scores.map(lambda x: x * torch.nan if x.is_floating_point() else x))

    run = read_run(write_run(tmp_path, "loglikelihood_rolling", FEW, BrokenLM()))
    [found] = rescore(run, [{"metric": "cross_entropy"}])
    assert found.skipped == []
    assert str(found.values["cross_entropy"]) == "(nan, nan)"


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ({"metric": "prediction_entropy"}, MissingScoreError, r"task t, metric prediction_entropy: it needs `entropy`, which "
         r"no log has. Of each token nll, confidence, correct, id and bytes are logged; .* --xent_metrics prediction_entropy"),
        ({"metric": "brier_score"}, MissingScoreError, "metric brier_score: it needs `"),
        ({"metric": "cross_entropi"}, UnknownMetricError, "Did you mean 'cross_entropy'"),
        ({"metric": "cross_entropy", "unti": "bits"}, MetricOptionError, "unti"),
        ({"metric": "cross_entropy", "by": "position"}, MetricOptionError, "by, doc_to_gold, and gold other than first"),
        ({"metric": "cross_entropy", "over": "choices"}, MetricOptionError, "over belongs to output_type multiple_choice"),
    ],
)  # fmt: skip
def test_what_a_log_cannot_give_is_refused_by_name(entry, error, message, rolling):
    with pytest.raises(error, match=message):
        rescore(read_run(rolling), [*FEW, entry])


def test_tasks_are_chosen_by_name_and_metrics_named_once(rolling):
    run = read_run(rolling)
    assert [found.task.name for found in rescore(run, FEW, tasks=["t"])] == ["t"]
    with pytest.raises(ComparisonError, match="has no task u; it has t"):
        rescore(run, FEW, tasks=["u"])
    with pytest.raises(MetricOptionError, match="expected metrics to compute; got none"):
        rescore(run, [])
    with pytest.raises(MetricOptionError, match="task t: bits_per_byte appears twice"):
        rescore(run, [*FEW, *FEW])


def without_last_half(lines):
    return [*lines[:-1], lines[-1][: len(lines[-1]) // 2]]


def with_another_token(lines):
    return [lines[0].replace('\\"nll\\": ', '\\"nll\\": 1', 1), *lines[1:]]


def without_a_score(lines):
    return [lines[0].replace('\\"correct\\"', '\\"right\\"', 1), *lines[1:]]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without_last_half, "line 4 of samples_t_.* is skipped: it is cut off or not JSON"),
        (with_another_token, "document 0: its tokens don't add up to its loglikelihood"),
        (without_a_score, "document 0: its tokens can't be read: KeyError: 'correct'"),
        (lambda lines: lines[1:], "task t: 1 of 4 documents are missing"),
    ],
)
def test_damaged_documents_are_named_and_refused_unless_told(change, problem, rolling, tmp_path):
    run = copied(rolling, tmp_path, change)
    with pytest.raises(ComparisonError, match=rf"1 problems with its samples; --skip-damaged .*\n\s+.*{problem}"):
        rescore(run, ASKED)
    [found] = rescore(run, ASKED, skip_damaged=True)
    assert len(found.skipped) == 1
    [whole] = rescore(read_run(rolling), ASKED)
    left = [sample.raw["doc_id"] for sample in found.samples]
    assert left == ([0, 1, 2] if change is without_last_half else [1, 2, 3])
    assert found.documents == tuple(whole.documents[i] for i in left)


def test_tokens_without_their_dtype_are_refused(rolling, tmp_path):
    run = copied(rolling, tmp_path, lambda lines: [line.replace('\\"dtype\\": \\"float32\\", ', "") for line in lines])
    with pytest.raises(
        MissingScoreError, match=r"document 0: the tokens are logged without `dtype` .*; evaluate again"
    ):
        rescore(run, FEW)


def gold_of(target, *choices, contexts=("q",)):
    arguments = {f"gen_args_{i}": {"arg_0": contexts[i % len(contexts)], "arg_1": f" {choice}"}
                 for i, choice in enumerate(choices)}  # fmt: skip
    raw = {"target": target, "arguments": arguments, "resps": [[["-1.0", "False"]]] * len(choices)}
    return gold_choice(raw, results_in(raw))


def test_the_gold_choice_is_an_index_or_a_text():
    assert [gold_of(str(doc["gold"]), *doc["choices"]) for doc in CHOICES] == [doc["gold"] for doc in CHOICES]
    assert gold_of("b", "a", "b") == 1
    for ambiguous in (("2", "1", "2", "3"), ("b", "b", "b"), ("c", "a", "b")):
        with pytest.raises(ComparisonError, match="which doesn't tell the gold one"):
            gold_of(*ambiguous)
    with pytest.raises(ComparisonError, match="different contexts"):
        gold_of("0", "a", "b", contexts=("p", "q"))


def test_a_logged_result_says_what_its_numbers_are(rolling):
    [sample, *_] = read_run(rolling).tasks["t"].samples
    logged = json.loads(sample.raw["resps"][0][0])
    assert list(logged) == ["loglikelihood", "dtype", "vocab_size", "tokens"]
    assert (logged["dtype"], logged["vocab_size"]) == ("float32", 256)
    assert list(logged["tokens"][0]) == ["text", "id", "nll", "confidence", "correct", "num_bytes"]
