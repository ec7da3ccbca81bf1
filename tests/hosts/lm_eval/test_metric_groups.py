"""`by` in a metric_list: each group's value, the mean over groups, and their errors, in lm-eval's results."""

import json
import math
import pickle

import pytest
import torch
from lm_eval.utils import make_table
from support.lm_eval import (
    CHOICES,
    PAIRS,
    ROLLING,
    TEXTS,
    BigramLM,
    ScoredBigramLM,
    UnusedLM,
    bigram_scores,
    config,
    emitted,
    evaluate,
    saved,
    values,
)

from xent_metrics import Frequency, Grouped, Position, TokenScores, get_metric
from xent_metrics.analysis.runs import read_run
from xent_metrics.errors import InvalidInputError, MetricOptionError, MissingScoreError
from xent_metrics.hosts.lm_eval import XentTask, loaded_models
from xent_metrics.hosts.lm_eval.command import parse_metrics
from xent_metrics.wrappers.standard_error import standard_error

EDGES = [0, 4, 16]
SUBJECTS = ["art", "maths, old", "art", "art", "maths, old", "music"]
LABELLED = [
    {"text": text * 2, "subject": subject} for text, subject in zip([*TEXTS, *TEXTS[:2]], SUBJECTS, strict=True)
]


def found(documents, entry, model=None):
    task = XentTask(config("loglikelihood_rolling", documents, [entry]))
    return values(evaluate(task, model or ScoredBigramLM()))


@pytest.mark.parametrize("model", [BigramLM, ScoredBigramLM])
def test_a_fields_groups_are_tasks_of_their_documents(model):
    """And the table has them, with their directions; a comma would end the name in lm-eval's results."""
    entry = {"metric": "bits_per_byte"}
    together = found(LABELLED, entry | {"by": {"field": "subject"}}, model())
    for label, shown in [("art", "art"), ("maths, old", "maths; old"), ("music", "music")]:
        alone = found([each for each in LABELLED if each["subject"] == label], entry, model())
        for suffix in ("", "_stderr"):
            same = together[f"bits_per_byte/{shown}{suffix}"], alone[f"bits_per_byte{suffix}"]
            assert same[0] == same[1] or all(map(math.isnan, same))
    assert math.isnan(together["bits_per_byte/music_stderr"])  # of one document
    whole = found(LABELLED, entry, model())
    assert {name: together[name] for name in ("bits_per_byte", "bits_per_byte_stderr")} == {
        name: whole[name] for name in ("bits_per_byte", "bits_per_byte_stderr")
    }
    groups = [together[f"bits_per_byte/{label}"] for label in ("art", "maths; old", "music")]
    assert together["bits_per_byte/macro"] == pytest.approx(sum(groups) / 3, rel=1e-14)
    assert math.isnan(together["bits_per_byte/macro_stderr"])


@pytest.mark.parametrize("name", ["bits_per_byte", "perplexity", "expected_calibration_error"])
def test_the_error_of_the_mean_of_small_groups_is_that_of_independent_values(name):
    """As of a group of tasks with weight_by_size: false, however few documents a group has."""
    documents = [each | {"subject": str(i // 2)} for i, each in enumerate(LABELLED * 2)]
    together = found(documents, {"metric": name, "by": {"field": "{{subject}}"}})
    errors = [together[f"{name}/{group}_stderr"] for group in range(6)]
    assert together[f"{name}/macro_stderr"] == pytest.approx(math.hypot(*errors) / 6, rel=1e-12)
    assert all(error > 0 for error in errors)


COUNTS = [(i * 37) % 200 for i in range(256)]


@pytest.mark.parametrize("kind", ["position", "frequency"])
@pytest.mark.parametrize("name", ["bits_per_byte", "cross_entropy", "expected_calibration_error"])
def test_tokens_by_position_and_by_frequency(kind, name, tmp_path):
    (tmp_path / "counts.json").write_text(json.dumps(COUNTS))
    by = {"position": EDGES} if kind == "position" else {"frequency": str(tmp_path / "counts.json")}
    grouping = Position(EDGES) if kind == "position" else Frequency([0, 1, 10, 100, 1000, 10_000, 100_000], COUNTS)
    together = found(ROLLING, {"metric": name, "by": by})
    micro, macro = (Grouped(get_metric(name), by=grouping, average=average) for average in ("micro", "macro"))
    states = torch.stack([micro.exact_sums(bigram_scores("", text)) for text in TEXTS])
    for text in TEXTS:
        for metric in (micro, macro):
            metric.update(bigram_scores("", text))
    for label, each in micro.by_group().items():
        error = standard_error(micro.metric, micro.group_states(states)[label])
        assert together[f"{name}/{label}"] == pytest.approx(float(each), rel=1e-14, nan_ok=True)
        assert together[f"{name}/{label}_stderr"] == pytest.approx(error, rel=1e-14, nan_ok=True)
    assert together[f"{name}/macro"] == pytest.approx(float(macro.compute()), rel=1e-12)
    assert together[name] == found(ROLLING, {"metric": name})[name]


@pytest.mark.parametrize("name", ["bits_per_byte", "expected_calibration_error"])
def test_the_error_of_the_mean_where_every_document_is_in_every_group(name):
    """It is that of a grouped metric, whose groups aren't independent of each other."""
    documents = [{"text": text * 16} for text in TEXTS]
    together = found(documents, {"metric": name, "by": {"position": EDGES}})
    macro = Grouped(get_metric(name), by=Position(EDGES), average="macro")
    states = torch.stack([macro.exact_sums(bigram_scores("", each["text"])) for each in documents])
    assert together[f"{name}/macro_stderr"] == pytest.approx(standard_error(macro, states), rel=1e-9)
    alone = [together[f"{name}/{label}_stderr"] for label in macro.grouping.labels]
    assert together[f"{name}/macro_stderr"] != pytest.approx(math.hypot(*alone) / 3, rel=1e-3)


def test_the_table_and_the_files_have_the_groups(tmp_path):
    task = XentTask(
        config("loglikelihood_rolling", LABELLED, [{"metric": "bits_per_byte", "by": {"field": "subject"}}])
    )
    results = evaluate(task, ScoredBigramLM())
    shown = values(results)
    rows = [[cell.strip() for cell in line.split("|")] for line in make_table(results).splitlines() if "/" in line]
    assert [row[5] for row in rows] == [f"bits_per_byte/{label}" for label in ("art", "macro", "maths; old", "music")]
    assert all(row[6] == "↓" and float(row[7]) == round(shown[row[5]], 4) for row in rows)
    saved(results, tmp_path)
    read = read_run(tmp_path)
    assert read.tasks["t"].values["bits_per_byte/art"] == shown["bits_per_byte/art"]
    assert read.tasks["t"].states("bits_per_byte").shape[0] == len(LABELLED)
    assert not read.problems


def test_gold_answers_and_choices_by_group():
    documents = [each | {"subject": name} for each, name in zip(CHOICES, ["a", "b", "a"], strict=True)]
    listed = [{"metric": "cross_entropy", "over": "choices", "by": {"field": "subject"}}]
    shown = values(evaluate(XentTask(config("multiple_choice", documents, listed)), BigramLM()))
    assert shown["cross_entropy"] == pytest.approx(
        (2 * shown["cross_entropy/a"] + shown["cross_entropy/b"]) / 3, rel=1e-12
    )
    listed = [{"metric": "cross_entropy", "by": {"position": [0, 1]}, "gold": "all"}]
    answers = [{"question": "Why? ", "answer": ["because", "é"]}, {"question": "Who:", "answer": ["me"]}]
    shown = values(evaluate(XentTask(config("generate_until", answers, listed)), ScoredBigramLM()))
    first = TokenScores.cat(
        [bigram_scores("Why?", " because"), bigram_scores("Why?", " é"), bigram_scores("Who:", " me")]
    ).nll[[0, 8, 11]]
    assert shown["cross_entropy/0"] == pytest.approx(float(first.double().mean()), rel=1e-6)


def test_every_document_emits_all_names_and_survives_the_gather():
    """lm-eval asks every rank for the names that rank 0 has."""
    task = XentTask(
        config("loglikelihood_rolling", LABELLED, [{"metric": "cross_entropy", "by": {"field": "subject"}}])
    )
    here = emitted(task, ScoredBigramLM())
    there = pickle.loads(pickle.dumps(here))
    assert len({tuple(each) for each in here}) == 1
    for name, aggregate in task.aggregation().items():
        both = [aggregate([each[name] for each in documents]) for documents in (here, there[::-1])]
        assert both[0] == pytest.approx(both[1], rel=1e-13, nan_ok=True)


def test_an_empty_rank_emits_the_same_names():
    task = XentTask(config("loglikelihood_rolling", ROLLING, [{"metric": "cross_entropy", "by": "position"}]))
    names = list(emitted(task, ScoredBigramLM())[0])
    task.on_empty_rank = True
    assert list(task.process_results(ROLLING[0], [])) == names


@pytest.mark.parametrize(
    ("entry", "error", "said"),
    [
        ({"by": "subject"}, MetricOptionError, "by is position, .*; got 'subject'"),
        ({"by": {"field": "a", "position": [0]}}, MetricOptionError, "got {'field': 'a', 'position'"),
        ({"by": {"position": [4, 0]}}, MetricOptionError, "by position: edges rise"),
        ({"by": {"frequency": "nowhere.json"}}, MetricOptionError, "by frequency: .*nowhere.json"),
        ({"by": {"field": "topic"}}, InvalidInputError, "no field 'topic'"),
        ({"over": "choices", "by": "position"}, MissingScoreError, "by group is defined over token scores"),
    ],
)
def test_mistakes_before_anything_runs(entry, error, said):
    with pytest.raises(error, match=f"^task t.*{said}"):
        XentTask(config("multiple_choice", CHOICES, [{"metric": "cross_entropy", **entry}]))


def test_labels_that_give_one_name():
    documents = [{"text": "a", "subject": "macro"}]
    with pytest.raises(InvalidInputError, match="different names, none of them macro"):
        XentTask(config("loglikelihood_rolling", documents, [{"metric": "cross_entropy", "by": {"field": "subject"}}]))


def test_a_field_that_is_different_everywhere():
    documents = [{"text": str(i)} for i in range(257)]
    with pytest.raises(InvalidInputError, match="by field 'text' has 257 values; expected at most 256"):
        XentTask(config("loglikelihood_rolling", documents, [{"metric": "cross_entropy", "by": {"field": "text"}}]))


def test_groups_of_tokens_need_a_model_with_token_scores(monkeypatch):
    task = XentTask(config("loglikelihood", PAIRS, [{"metric": "bits_per_byte", "by": "position"}]))
    with pytest.raises(MissingScoreError, match="metric bits_per_byte: bits_per_byte by group is defined over token"):
        evaluate(task, BigramLM())
    monkeypatch.delattr(ScoredBigramLM, "gives_token_scores")
    monkeypatch.setattr(loaded_models, "LM", BigramLM)
    with pytest.raises(MissingScoreError, match=r"^task t: bits_per_byte by group is defined over token"):
        evaluate(task, UnusedLM())


def test_the_command_line_takes_it():
    assert parse_metrics("cross_entropy:by={field: subject};unit=bits") == [
        {"metric": "cross_entropy", "by": {"field": "subject"}, "unit": "bits"}
    ]
