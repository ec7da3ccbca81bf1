"""XentTask in lm-eval's own evaluator, against lm-eval's own numbers, torchmetrics' route and NumPy."""

import functools
import itertools
import json
import math
import pickle

import numpy as np
import pytest
import torch
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import metric_registry
from lm_eval.api.task import ConfigurableTask
from lm_eval.utils import handle_non_serializable, make_table
from support.lm_eval import TEXTS, BigramLM, ScoredBigramLM, bigram_scores, config, evaluate, values

from xent_metrics import TokenScores, get_metric, list_metrics
from xent_metrics.errors import (
    InvalidInputError,
    InvalidTargetError,
    MetricOptionError,
    MissingScoreError,
    UnknownMetricError,
)
from xent_metrics.hosts.lm_eval import XentTask
from xent_metrics.hosts.lm_eval import task as task_module
from xent_metrics.hosts.lm_eval.documents import DocumentSums, DocumentValue
from xent_metrics.hosts.lm_eval.upstream import EMITTED

ROLLING = [{"text": text} for text in TEXTS]
PAIRS = [
    {"question": "Why? ", "answer": "because"},
    {"question": "Who:\n", "answer": "nobody knows"},
    {"question": "", "answer": "é"},
]
SPANS = [("Why?", " because"), ("Who:", "\nnobody knows"), ("", "é")]  # what is scored of them, and after what
CHOICES = [
    {"question": "One", "choices": ["a", "bb", "c c"], "gold": 1},
    {"question": "Two", "choices": ["d", "ee"], "gold": 0},
    {"question": "Three", "choices": ["f", "gé", "h", "i"], "gold": 3},
]
LENGTHS = ["bits_per_byte", "byte_perplexity", "word_perplexity"]


def entries(*names):
    return [{"metric": name} for name in names]


def ratio_standard_error(y, x):
    """Cochran (1977), section 6.3: of Σy / Σx over documents drawn independently."""
    y, x = np.asarray(y, float), np.asarray(x, float)
    n, ratio = len(y), y.sum() / x.sum()
    return math.sqrt(n / (n - 1) * ((y - ratio * x) ** 2).sum()) / x.sum()


# Rolling.


@pytest.mark.parametrize("model", [BigramLM, ScoredBigramLM, functools.partial(ScoredBigramLM, token_bytes=None)])
def test_per_length_metrics_are_lm_evals_own(model):
    ours = values(evaluate(XentTask(config("loglikelihood_rolling", ROLLING, entries(*LENGTHS))), model()))
    stock = values(evaluate(ConfigurableTask(config=config("loglikelihood_rolling", ROLLING, None)), model()))
    for name in LENGTHS:
        assert ours[name] == pytest.approx(stock[name], rel=1e-14)
        assert type(ours[name]) is float


def test_standard_errors_are_the_ratio_estimators():
    found = values(evaluate(XentTask(config("loglikelihood_rolling", ROLLING, entries(*LENGTHS))), BigramLM()))
    nats = [float(bigram_scores("", text).nll.double().sum()) for text in TEXTS]
    num_bytes = [len(text.encode()) for text in TEXTS]
    num_words = [ConfigurableTask.count_words(text) for text in TEXTS]
    per_byte, per_word = ratio_standard_error(nats, num_bytes), ratio_standard_error(nats, num_words)
    assert found["bits_per_byte_stderr"] == pytest.approx(per_byte / math.log(2), rel=1e-9)
    assert found["byte_perplexity_stderr"] == pytest.approx(found["byte_perplexity"] * per_byte, rel=1e-9)
    assert found["word_perplexity_stderr"] == pytest.approx(found["word_perplexity"] * per_word, rel=1e-9)


def test_token_scores_give_the_bits_that_torchmetrics_gives():
    names = ["cross_entropy", "perplexity", "token_accuracy", "expected_calibration_error", "bits_per_byte"]
    found = values(evaluate(XentTask(config("loglikelihood_rolling", ROLLING, entries(*names))), ScoredBigramLM()))
    for name in names:
        metric = get_metric(name)
        metric.update(TokenScores.cat([bigram_scores("", text) for text in reversed(TEXTS)]))
        assert found[name] == metric.compute().item()
        assert found[f"{name}_stderr"] > 0


def test_bytes_are_counted_from_the_text_where_the_tokens_know_none():
    task = XentTask(config("loglikelihood_rolling", ROLLING, entries("bits_per_byte", "cross_entropy")))
    without = values(evaluate(task, ScoredBigramLM(token_bytes=None)))
    assert without["bits_per_byte"] == pytest.approx(
        without["cross_entropy"] / math.log(2), rel=1e-14
    )  # a byte a token


@pytest.mark.parametrize("token_bytes", [{"e": 0}, {"e": 2}, {"e": 0, "h": 2}])
def test_bytes_are_counted_from_the_text_where_the_tokens_dont_cover_it(token_bytes):
    """A token without bytes would take its nats out of the sum, also if another has its bytes: lm-eval's number has them."""
    documents = [{"text": "he, eh"}, {"text": "ehehe hh"}]
    task = XentTask(config("loglikelihood_rolling", documents, entries("bits_per_byte", "cross_entropy")))
    found = values(evaluate(task, ScoredBigramLM(token_bytes=token_bytes)))
    assert found["bits_per_byte"] == pytest.approx(found["cross_entropy"] / math.log(2), rel=1e-14)


# Loglikelihood.


def test_a_continuations_span_has_the_white_space_of_its_context():
    model = BigramLM()
    task = XentTask(
        config("loglikelihood", PAIRS, [{"metric": "bits_per_byte"}, {"metric": "acc", "aggregation": "mean"}])
    )
    found = values(evaluate(task, model))
    nats = sum(float(bigram_scores(*span).nll.double().sum()) for span in SPANS)
    assert found["bits_per_byte"] == pytest.approx(
        nats / math.log(2) / sum(len(s.encode()) for _, s in SPANS), rel=1e-12
    )
    assert found["acc"] == 0.0
    assert model.asked == [("Why? ", "because"), ("Who:\n", "nobody knows"), ("", "é")]
    scored = values(evaluate(task, ScoredBigramLM()))
    assert scored["bits_per_byte"] == pytest.approx(found["bits_per_byte"], rel=1e-15)


def test_words_of_a_continuation_have_no_empty_one_before_the_delimiter():
    task = XentTask(config("loglikelihood", PAIRS, entries("word_perplexity")))
    nats = sum(float(bigram_scores(*span).nll.double().sum()) for span in SPANS)
    assert values(evaluate(task, BigramLM()))["word_perplexity"] == pytest.approx(math.exp(nats / 4), rel=1e-12)


# Multiple choice.


def choice_probabilities(document, delimiter=" "):
    nats = [float(bigram_scores(document["question"], delimiter + c).nll.double().sum()) for c in document["choices"]]
    exp = np.exp(min(nats) - np.array(nats))
    return exp / exp.sum()


def test_over_choices_is_the_softmax_of_the_choices():
    task = XentTask(config("multiple_choice", CHOICES, [
        {"metric": "cross_entropy", "over": "choices"},
        {"metric": "expected_calibration_error", "over": "choices", "num_bins": 5},
        {"metric": "token_accuracy", "over": "choices"},
        {"metric": "acc"},
        {"metric": "acc_norm", "aggregation": "mean"},
    ]))  # fmt: skip
    found = values(evaluate(task, BigramLM()))
    rows = [choice_probabilities(document) for document in CHOICES]
    gold = [document["gold"] for document in CHOICES]
    nll = np.array([-math.log(row[g]) for row, g in zip(rows, gold, strict=True)])
    assert found["cross_entropy"] == pytest.approx(nll.mean(), rel=1e-12)
    assert found["cross_entropy_stderr"] == pytest.approx(nll.std(ddof=1) / math.sqrt(len(nll)), rel=1e-9)
    correct = np.array([row.argmax() == g for row, g in zip(rows, gold, strict=True)])
    confidence = np.array([row.max() for row in rows])
    bins = np.ceil(confidence * 5).astype(int)
    gaps = [abs(correct[bins == b].sum() - confidence[bins == b].sum()) for b in set(bins)]
    assert found["expected_calibration_error"] == pytest.approx(sum(gaps) / len(rows), rel=1e-9)
    assert found["token_accuracy"] == found["acc"] == correct.mean()
    assert "acc_norm" in found


def test_the_brier_score_is_lm_evals_own():
    documents = [{**document, "choices": document["choices"][:2], "gold": 1} for document in CHOICES]
    found = values(evaluate(XentTask(config("multiple_choice", documents, entries("brier_score"))), BigramLM()))
    stock = ConfigurableTask(config=config("multiple_choice", documents, [{"metric": "brier_score"}]))
    assert found["brier_score"] == pytest.approx(values(evaluate(stock, BigramLM()))["brier_score"], rel=1e-12)
    assert found["brier_score_stderr"] > 0


def test_metrics_of_the_whole_distribution_are_over_choices():
    names = [
        "top_k_accuracy",
        "mean_reciprocal_rank",
        "prediction_entropy",
        "full_calibration_error",
        "optimal_temperature",
    ]
    listed = [{"metric": name, "over": "choices"} for name in names]
    listed.append({"metric": "classwise_calibration_error", "over": "choices", "classes": 4})
    found = values(evaluate(XentTask(config("multiple_choice", CHOICES, listed)), BigramLM()))
    rows = [choice_probabilities(document) for document in CHOICES]
    entropy = np.mean([-(row * np.log(row)).sum() for row in rows])
    assert found["prediction_entropy"] == pytest.approx(entropy, rel=1e-12)
    assert all(math.isfinite(found[entry["metric"]]) for entry in listed)


def test_over_gold_is_the_gold_continuation_with_its_delimiter():
    listed = [{"metric": "bits_per_byte"}, {"metric": "cross_entropy", "over": "gold"}]
    task = XentTask(config("multiple_choice", CHOICES, listed, target_delimiter="  "))
    found = values(evaluate(task, ScoredBigramLM()))
    golds = [bigram_scores(d["question"], "  " + d["choices"][d["gold"]]) for d in CHOICES]
    metric = get_metric("cross_entropy")
    metric.update(TokenScores.cat(golds))
    assert found["cross_entropy"] == metric.compute().item()
    assert found["bits_per_byte"] == pytest.approx(metric.compute().item() / math.log(2), rel=1e-15)  # a byte a token


def test_choices_that_stand_in_the_contexts():
    """As in Winogrande: doc_to_text is the gold index, the choices are contexts, one continuation follows each."""
    documents = [
        {"choices": ["one", "two"], "gold": 1, "end": "went on"},
        {"choices": ["x", "yy"], "gold": 0, "end": "so"},
    ]
    listed = [{"metric": "cross_entropy", "over": "choices"}, {"metric": "acc"}, {"metric": "bits_per_byte"}]
    made = config("multiple_choice", documents, listed) | {"doc_to_text": "{{gold}}", "doc_to_target": "{{end}}"}
    model = BigramLM()
    found = values(evaluate(XentTask(made), model))
    assert ("two", " went on") in model.asked
    nats = [[float(bigram_scores(c, " " + d["end"]).nll.double().sum()) for c in d["choices"]] for d in documents]
    golds = [row[d["gold"]] for row, d in zip(nats, documents, strict=True)]
    expected = np.mean([g + math.log(sum(math.exp(-n) for n in row)) for g, row in zip(golds, nats, strict=True)])
    assert found["cross_entropy"] == pytest.approx(expected, rel=1e-9)
    assert found["bits_per_byte"] == pytest.approx(sum(golds) / math.log(2) / len(" went on so"), rel=1e-12)


def test_mutual_information_requests_are_not_taken_for_choices():
    listed = [{"metric": "cross_entropy", "over": "choices"}, {"metric": "acc_mutual_info"}]
    with_them = values(evaluate(XentTask(config("multiple_choice", CHOICES, listed)), BigramLM()))
    alone = values(evaluate(XentTask(config("multiple_choice", CHOICES, listed[:1])), BigramLM()))
    assert with_them["cross_entropy"] == alone["cross_entropy"]


def test_gold_may_be_a_choices_text():
    documents = [document | {"gold": document["choices"][document["gold"]]} for document in CHOICES]
    listed = [{"metric": "cross_entropy", "over": "choices"}]
    by_text = values(evaluate(XentTask(config("multiple_choice", documents, listed)), BigramLM()))
    assert by_text == values(evaluate(XentTask(config("multiple_choice", CHOICES, listed)), BigramLM()))


# What stands in the results.


def test_one_metric_twice_under_two_names():
    listed = [{"metric": "cross_entropy"}, {"metric": "cross_entropy", "unit": "bits", "name": "bits_per_token"}]
    results = evaluate(XentTask(config("loglikelihood_rolling", ROLLING, listed)), ScoredBigramLM())
    found = values(results)
    assert found["bits_per_token"] == pytest.approx(found["cross_entropy"] / math.log(2), rel=1e-15)
    assert results["configs"]["t"]["metric_list"] == listed
    assert results["higher_is_better"]["t"]["bits_per_token"] is False


def test_the_table_has_value_and_standard_error():
    """Guards the detail that `<name>_stderr`, emitted after `<name>`, takes the place of lm-eval's N/A."""
    task = XentTask(config("loglikelihood_rolling", ROLLING, entries("bits_per_byte")))
    results = evaluate(task, BigramLM())
    found = values(results)
    [row] = [line for line in make_table(results).splitlines() if "bits_per_byte" in line]
    cells = [cell.strip() for cell in row.split("|")][-5:-1]
    assert cells[::2] == ["↓", "±"]
    assert [float(cell) for cell in cells[1::2]] == [
        round(found[name], 4) for name in ("bits_per_byte", "bits_per_byte_stderr")
    ]
    assert found["bits_per_byte_stderr"] > 0
    assert results["n-samples"]["t"]["effective"] == len(TEXTS)


def test_results_and_samples_are_plain_json():
    results = evaluate(XentTask(config("loglikelihood_rolling", ROLLING, entries("bits_per_byte"))), ScoredBigramLM())
    json.dumps(results["results"], allow_nan=False)
    sample = json.loads(json.dumps(results["samples"]["t"][0], default=handle_non_serializable, allow_nan=False))
    nats = float(bigram_scores("", TEXTS[0]).nll.double().sum())
    assert sample["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(TEXTS[0].encode()), rel=1e-14)
    sums = sample["bits_per_byte_stderr"]
    assert [len(TEXTS[0].encode()), pytest.approx(nats, rel=1e-14)] == [sums["num_bytes"], sums["nats[num_bytes > 0]"]]
    assert sample["filtered_resps"] == [pytest.approx(-nats, rel=1e-14)]


def test_one_document_has_a_value_and_no_standard_error():
    found = values(
        evaluate(XentTask(config("loglikelihood_rolling", ROLLING[:1], entries("bits_per_byte"))), BigramLM())
    )
    assert math.isfinite(found["bits_per_byte"])
    assert math.isnan(found["bits_per_byte_stderr"])


def test_nothing_is_carried_from_one_evaluation_to_the_next():
    task = XentTask(config("loglikelihood_rolling", ROLLING, entries("bits_per_byte", "cross_entropy")))
    assert values(evaluate(task, ScoredBigramLM())) == values(evaluate(task, ScoredBigramLM()))


def test_predict_only_computes_nothing():
    task = XentTask(config("loglikelihood_rolling", ROLLING, entries("bits_per_byte", "cross_entropy")))
    task.override_metric("bypass")  # what `--predict_only` does
    results = evaluate(task, BigramLM())
    assert len(results["samples"]["t"]) == len(TEXTS)
    assert not values(results)


def test_a_cache_of_responses_keeps_the_scores(tmp_path):
    task = XentTask(config("loglikelihood_rolling", ROLLING, entries("cross_entropy")))
    first, second = ScoredBigramLM(), ScoredBigramLM()
    found = [values(evaluate(task, CachingLM(model, str(tmp_path / "cache.db")))) for model in (first, second)]
    assert found[0] == found[1]
    assert (len(first.asked), len(second.asked)) == (len(TEXTS), 0)


# Several processes.


def emitted(task, model):
    """What a rank gathers: process_results of every document, through the steps that lm-eval's evaluator takes."""
    task.build_all_requests()
    for instance in task.instances:
        instance.resps.append(getattr(model, instance.request_type)([instance])[0])
    task.apply_filters()
    documents = list(task.doc_iterator())
    by_document = itertools.groupby(task.instances, key=lambda instance: instance.doc_id)
    return [task.process_results(doc, [i.filtered_resps["none"] for i in group])
            for (_, doc), (_, group) in zip(documents, by_document, strict=True)]  # fmt: skip


def test_gathered_values_aggregate_to_the_same_bits_in_any_order():
    names = ["bits_per_byte", "cross_entropy", "expected_calibration_error"]
    task = XentTask(config("loglikelihood_rolling", ROLLING, entries(*names)))
    task.set_config("num_fewshot", 0)
    found = emitted(task, ScoredBigramLM())
    ranks = [pickle.loads(pickle.dumps(found[rank::2])) for rank in range(2)]  # as gather_object sends them
    for name, order in itertools.product([*names, *(f"{n}_stderr" for n in names)], [(0, 1), (1, 0)]):
        aggregation = task.aggregation()[name]
        gathered = [document[name] for rank in order for document in ranks[rank]]
        assert isinstance(gathered[0], DocumentSums if name.endswith("_stderr") else DocumentValue)
        assert type(aggregation(gathered)) is float
        if not name.endswith("_stderr"):
            assert aggregation(gathered) == aggregation([document[name] for document in found])
        assert aggregation(gathered) == pytest.approx(aggregation([document[name] for document in found]), rel=1e-12)
    assert math.isnan(task.aggregation()["bits_per_byte"]([]))
    assert math.isnan(task.aggregation()["bits_per_byte_stderr"]([]))


def test_a_filtered_result_pickles_as_the_plain_value():
    task = XentTask(config("multiple_choice", CHOICES, entries("bits_per_byte")))
    task.set_config("num_fewshot", 0)
    emitted(task, ScoredBigramLM())
    [answer, *_] = [instance.filtered_resps["none"] for instance in task.instances]
    assert type(pickle.loads(pickle.dumps(answer))) is tuple
    assert answer.text == " a"


def test_results_need_their_requests():
    task = XentTask(config("loglikelihood_rolling", ROLLING, entries("bits_per_byte")))
    with pytest.raises(InvalidInputError, match="apply_filters"):
        task.process_results(ROLLING[0], [-1.0])


def test_lm_evals_perplexity_goes_on_working_beside_ours():
    theirs = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
    listed = [theirs, {"metric": "acc"}, {"metric": "perplexity", "name": "per_token"}]
    found = values(evaluate(XentTask(config("loglikelihood", PAIRS, listed)), ScoredBigramLM()))
    alone = values(evaluate(ConfigurableTask(config=config("loglikelihood", PAIRS, [theirs])), ScoredBigramLM()))
    assert found["perplexity"] == alone["perplexity"]
    per_token = values(evaluate(XentTask(config("loglikelihood", PAIRS, entries("perplexity"))), ScoredBigramLM()))
    assert found["per_token"] == per_token["perplexity"] != alone["perplexity"]
    with pytest.raises(MetricOptionError, match="perplexity stands twice"):
        XentTask(config("loglikelihood", PAIRS, [theirs, {"metric": "perplexity"}]))


# Errors, before the model runs.


@pytest.mark.parametrize(
    ("output_type", "entry", "error", "said"),
    [
        ("loglikelihood_rolling", {"metric": "bits_per_bite"}, UnknownMetricError, "Did you mean 'bits_per_byte'"),
        (
            "loglikelihood_rolling",
            {"metric": "acc"},
            UnknownMetricError,
            "lm-eval's own in loglikelihood_rolling: none",
        ),
        ("multiple_choice", {"metric": "acc_nrom"}, UnknownMetricError, "Did you mean 'acc_norm'"),
        ("multiple_choice", {"metric": "cross_entropi", "over": "choices"}, UnknownMetricError, "'cross_entropy'"),
        ("multiple_choice", {"metric": lambda items: 0}, UnknownMetricError, "never calls a !function metric"),
        ("generate_until", {"metric": "exact_mach"}, UnknownMetricError, "Did you mean 'exact_match'"),
        ("generate_until", {"metric": "cross_entropy"}, MissingScoreError, "gives text, not loglikelihoods"),
        ("loglikelihood", {"metric": "cross_entropy", "unti": "bits"}, MetricOptionError, "Did you mean 'unit'"),
        ("loglikelihood", {"metric": "cross_entropy", "unit": "bites"}, MetricOptionError, '"nats" or "bits"'),
        ("loglikelihood", {"metric": "cross_entropy", "ignore_index": 104}, MetricOptionError, "remove ignore_index"),
        ("loglikelihood", {"metric": "cross_entropy", "over": "gold"}, MetricOptionError, "over belongs to"),
        ("multiple_choice", {"metric": "cross_entropy", "over": "golds"}, MetricOptionError, "got 'golds'"),
        ("loglikelihood", {"metric": "cross_entropy", "aggregation": "mean"}, MetricOptionError, "remove aggregation"),
        ("loglikelihood", {"metric": "perplexity", "aggregation": "perplexty"}, MetricOptionError, "'perplexity'"),
        ("loglikelihood", {"metric": "perplexity", "higher_is_better": False}, MetricOptionError, "remove higher_is"),
        ("multiple_choice", {"metric": "acc", "aggregation": "maen"}, MetricOptionError, "Did you mean 'mean'"),
        ("multiple_choice", {"metric": "acc", "agregation": "mean"}, MetricOptionError, "remove agregation. Did you"),
        ("multiple_choice", {"metric": "bits_per_byte", "over": "choices"}, MissingScoreError, "over: gold does"),
        (
            "multiple_choice",
            {"metric": "cross_entropy", "label_smoothing": 0.1},
            MissingScoreError,
            "metric cross_entropy: .*over: choices has the whole",
        ),
        (
            "multiple_choice",
            {"metric": "kl_divergence", "over": "choices"},
            MissingScoreError,
            "task t, metric kl_divergence: .*no lm-eval model gives it",
        ),
        ("loglikelihood", {"metric": "cross_entropy", "label_smoothing": 0.1}, MissingScoreError, "no lm-eval model"),
        ("loglikelihood", {"metric": "cross_entropy", "name": "a,b"}, MetricOptionError, "without commas"),
        ("loglikelihood", {"metric": "cross_entropy", "name": "acc"}, MetricOptionError, "acc stands twice"),
        ("loglikelihood", "cross_entropy", MetricOptionError, "got 'cross_entropy'"),
        ("loglikelihood", {"metric": "bits_per_byte", "token_bytes": 3}, Exception, "task t, metric bits_per_byte"),
    ],
)
def test_mistakes_are_found_before_data_are_loaded(output_type, entry, error, said):
    def never(**_):
        raise AssertionError("data were loaded")

    listed = [entry, {"metric": "acc"}] if output_type == "loglikelihood" else [entry]
    with pytest.raises(error, match=said.replace("?", r"\?")) as raised:
        XentTask(config(output_type, CHOICES, listed) | {"custom_dataset": never})
    assert "task t" in str(raised.value)


class Unused(BigramLM):
    """Must not be asked."""

    def loglikelihood(self, requests):
        raise AssertionError("the model ran")

    loglikelihood_rolling = loglikelihood


@pytest.mark.parametrize("gold", [3, -1, "zz"])
def test_a_gold_answer_that_is_no_choice(gold):
    documents = [CHOICES[0] | {"gold": str(CHOICES[0]["gold"])}, CHOICES[1] | {"gold": str(gold)}]
    task = XentTask(config("multiple_choice", documents, [{"metric": "cross_entropy", "over": "choices"}]))
    with pytest.raises(InvalidTargetError, match=f"got '?{gold}'? in .*Two"):
        evaluate(task, Unused())


def test_a_metric_made_for_another_number_of_choices():
    weights = {"metric": "cross_entropy", "over": "choices", "class_weight": [1.0, 2.0, 3.0, 4.0]}
    task = XentTask(config("multiple_choice", CHOICES, [weights]))
    with pytest.raises(InvalidInputError, match=r"task t, metric cross_entropy over 3 choices: .*class_weight"):
        evaluate(task, Unused())
    documents = [document for document in CHOICES if len(document["choices"]) == 4]
    found = values(evaluate(XentTask(config("multiple_choice", documents, [weights])), BigramLM()))
    nll = -math.log(choice_probabilities(documents[0])[documents[0]["gold"]])
    assert found["cross_entropy"] == pytest.approx(nll, rel=1e-12)  # of one document the weight cancels


def test_several_gold_answers():
    documents = [document | {"gold": [0, 1]} for document in CHOICES]
    made = config("multiple_choice", documents, [{"metric": "cross_entropy", "over": "choices"}]) | {
        "doc_to_target": "gold"
    }
    with pytest.raises(InvalidInputError, match="list of gold answers; cross_entropy needs one"):
        XentTask(made)


def test_a_model_without_token_scores_before_it_runs(monkeypatch):
    monkeypatch.delattr(ScoredBigramLM, "gives_token_scores")  # as in a process that has loaded no such model
    monkeypatch.setattr(task_module, "LM", BigramLM)
    rolling = XentTask(config("loglikelihood_rolling", ROLLING, entries("bits_per_byte", "cross_entropy")))
    with pytest.raises(MissingScoreError, match=r"task t: cross_entropy is defined over .*--model xent-hf"):
        evaluate(rolling, Unused())
    choice = XentTask(config("multiple_choice", CHOICES, entries("token_accuracy")))
    with pytest.raises(MissingScoreError, match="works with any model: `over: choices`"):
        evaluate(choice, Unused())


def test_a_model_without_token_scores_where_another_has_them():
    task = XentTask(config("loglikelihood_rolling", ROLLING, entries("cross_entropy")))
    with pytest.raises(MissingScoreError, match=r"^task t, metric cross_entropy: .*--model xent-torch"):
        evaluate(task, BigramLM())


# lm-eval's own code, as we found it.


@pytest.mark.parametrize("output_type", sorted(EMITTED))
def test_lm_eval_emits_what_we_think(output_type):
    documents = {"loglikelihood": PAIRS, "loglikelihood_rolling": ROLLING, "multiple_choice": CHOICES}[output_type]
    names = sorted(name for name in metric_registry if name != "bypass")
    task = ConfigurableTask(
        config=config(output_type, documents, [{"metric": name, "aggregation": "mean"} for name in names])
    )
    results = [(-1.0, True)] * 2 * len(documents[0].get("choices", [])) or [(-1.0, True)]
    assert (
        set(task.process_results(documents[0], [-1.0] if "rolling" in output_type else results)) == EMITTED[output_type]
    )


def test_our_names_are_not_in_lm_evals_registry():
    ours = set(list_metrics()) - set().union(*EMITTED.values())
    assert ours
    assert not ours & set(metric_registry)


def test_metrics_of_all_kinds_are_python_floats():
    listed = [{"metric": name, "over": over, "name": f"{name}_{over}"} for name in ("cross_entropy", "perplexity",
              "token_accuracy", "expected_calibration_error", "calibration_weighted_cross_entropy")
              for over in ("gold", "choices")]  # fmt: skip
    found = values(evaluate(XentTask(config("multiple_choice", CHOICES, listed)), ScoredBigramLM()))
    assert all(type(found[entry["name"]]) is float for entry in listed)
    assert not any(isinstance(value, torch.Tensor) for value in found.values())
