"""Groups: the value and error of all documents of their tasks, in lm-eval's own evaluator."""

import json
import logging
import math
import pickle
import subprocess
import sys

import pytest
from lm_eval.api.group import Group
from lm_eval.config.group import AggMetricConfig
from lm_eval.evaluator import evaluate
from lm_eval.utils import make_table
from support.hf_model import tiny_model, tiny_tokenizer
from support.lm_eval import CHOICES, ROLLING, BigramLM, ScoredBigramLM, config, entries, to_caplog, write_jsonl
from support.task_yamls import OURS
from support.task_yamls import ROLLING as YAML

from xent_metrics.hosts.lm_eval import XentTask
from xent_metrics.hosts.lm_eval.groups import with_exact_values
from xent_metrics.hosts.lm_eval.task_manager import XentTaskManager
from xent_metrics.hosts.lm_eval.upstream import aggregate_groups

METRICS = ["bits_per_byte", "word_perplexity"]
TOKEN_METRICS = ["cross_entropy", "perplexity", "expected_calibration_error"]


def task(name, documents, metric_list, output_type="loglikelihood_rolling", **more):
    return XentTask(config(output_type, documents, metric_list, **more) | {"task": name})


def group(name, children, *metrics, **options):
    made = Group(name, aggregate_metric_list=[AggMetricConfig(metric, **options) for metric in metrics])
    for child in children:
        made.add(child)
    return made


def results(*items, model=None):
    """lm-eval's results of groups and tasks that run together."""
    groups = [item for item in items if isinstance(item, Group)]
    groups += [inner for each in groups for inner in each.get_all_groups()]
    tasks = [leaf for item in items for leaf in (item.get_all_tasks() if isinstance(item, Group) else [item])]
    loaded = {"tasks": {each.task_name: each for each in tasks}, "groups": {each.name: each for each in groups}}
    return evaluate(model or ScoredBigramLM(), loaded, bootstrap_iters=0)


def numbers(found, name):
    return {key: value for key, value in found["results"][name].items() if key.endswith(",none")}


def parts(metric_list):
    """One document, and three."""
    return [task("one", ROLLING[:1], metric_list), task("three", ROLLING[1:], metric_list)]


@pytest.mark.parametrize(("model", "metrics"), [(BigramLM, METRICS), (ScoredBigramLM, METRICS + TOKEN_METRICS)])
def test_a_group_is_one_task_of_all_documents(model, metrics):
    found = results(
        group("g", parts(entries(*metrics)), *metrics), task("all", ROLLING, entries(*metrics)), model=model()
    )
    of_group, of_all = numbers(found, "g"), numbers(found, "all")
    for name in metrics:
        assert of_group[f"{name},none"] == of_all[f"{name},none"]  # bit for bit
        assert of_group[f"{name}_stderr,none"] == of_all[f"{name}_stderr,none"]
    one, three = (numbers(found, name)["bits_per_byte,none"] for name in ("one", "three"))
    assert of_group["bits_per_byte,none"] != pytest.approx((one + 3 * three) / 4, rel=1e-4)  # lm-eval's mean of ratios


def test_the_table_and_the_json_have_the_groups_value():
    found = results(
        group("g", parts(entries("bits_per_byte")), "bits_per_byte"), task("all", ROLLING, entries(*METRICS))
    )
    value, error = (numbers(found, "all")[f"bits_per_byte{suffix},none"] for suffix in ("", "_stderr"))
    [row] = make_table(found, "groups").strip().splitlines()[2:]
    cells = [cell.strip() for cell in row.split("|")][-5:-1]
    assert cells[::2] == ["↓", "±"]
    assert [float(cell) for cell in cells[1::2]] == [round(value, 4), round(error, 4)]
    written = json.loads(json.dumps(found["groups"]["g"]))
    assert (written["bits_per_byte,none"], written["bits_per_byte_stderr,none"]) == (value, error)
    assert written["sample_len"] == len(ROLLING)
    assert type(pickle.loads(pickle.dumps(found["groups"]["g"]))["bits_per_byte,none"]) is float


def test_weight_by_size_false_is_the_mean_of_the_tasks():
    halves = [task("first", ROLLING[:2], entries(*METRICS)), task("second", ROLLING[1:], entries(*METRICS))]
    found = results(group("g", halves, *METRICS, weight_by_size=False))
    for name in METRICS:
        value, error = (
            [numbers(found, half)[f"{name}{suffix},none"] for half in ("first", "second")] for suffix in ("", "_stderr")
        )
        assert numbers(found, "g")[f"{name},none"] == pytest.approx(sum(value) / 2, rel=1e-14)
        assert numbers(found, "g")[f"{name}_stderr,none"] == pytest.approx(math.hypot(*error) / 2, rel=1e-12)


def test_a_group_of_groups_with_other_numbers_of_shots():
    """As in mmlu: every document counts once, however deep its task is and whatever stands before it."""
    shots = {"fewshot_config": {"samples": [dict(CHOICES[0])]}, "fewshot_split": None}
    listed = [{"metric": "bits_per_byte"}, {"metric": "cross_entropy", "over": "choices"}]
    leaves = [
        task("none", CHOICES[:1], listed, "multiple_choice"),
        task("one", CHOICES[1:], listed, "multiple_choice", num_fewshot=1, **shots),
        task("all", CHOICES[1:], listed, "multiple_choice", num_fewshot=1, **shots),
    ]
    names = "bits_per_byte", "cross_entropy"
    inner = group("inner", leaves[1:2], *names)
    found = results(group("outer", [leaves[0], inner], *names), leaves[2])
    assert (found["n-shot"]["none"], found["n-shot"]["one"]) == (0, 1)
    assert numbers(found, "inner").items() >= {
        (k, v) for k, v in numbers(found, "all").items() if "stderr_stderr" not in k
    }
    total = [numbers(found, name)["bits_per_byte,none"] * size for name, size in (("none", 3), ("one", 2 + 2))]
    assert numbers(found, "outer")["bits_per_byte,none"] == pytest.approx(
        sum(total) / 7, rel=1e-12
    )  # bytes with the space
    one, two = numbers(found, "none")["cross_entropy,none"], numbers(found, "one")["cross_entropy,none"]
    assert numbers(found, "outer")["cross_entropy,none"] == pytest.approx((one + 2 * two) / 3, rel=1e-12)


def test_a_task_in_a_group_and_in_its_subgroup_counts_once():
    one, three = parts(entries("bits_per_byte"))
    inner = group("inner", [one, three], "bits_per_byte")
    found = results(group("outer", [one, inner], "bits_per_byte"), task("all", ROLLING, entries("bits_per_byte")))
    for key in ("bits_per_byte,none", "bits_per_byte_stderr,none"):
        assert numbers(found, "outer")[key] == numbers(found, "inner")[key] == numbers(found, "all")[key]


def test_a_metric_that_a_task_lacks_is_said_once(caplog, monkeypatch):
    to_caplog(monkeypatch, caplog)
    made = [*parts(entries("bits_per_byte")), task("other", ROLLING, entries("word_perplexity"))]
    with caplog.at_level(logging.WARNING):
        found = results(group("g", made, "bits_per_byte", "z_loss"), task("all", ROLLING, entries("bits_per_byte")))
    assert numbers(found, "g")["bits_per_byte,none"] == numbers(found, "all")["bits_per_byte,none"]
    said = [record.getMessage() for record in caplog.records if "Group 'g'" in record.getMessage()]
    assert len(said) == 2
    assert "'bits_per_byte,none' is missing in 1/3 tasks. Missing in: other" in said[0]
    assert "none of its tasks has the metric z_loss" in said[1]


@pytest.mark.parametrize("weighted", [True, False])
def test_tasks_that_mean_different_things_by_a_name_have_no_value_together(weighted, caplog):
    made = [
        task("nats", ROLLING, entries("cross_entropy")),
        task("bits", ROLLING, [{"metric": "cross_entropy", "unit": "bits"}]),
    ]
    with caplog.at_level(logging.WARNING):
        found = numbers(results(group("g", made, "cross_entropy", weight_by_size=weighted)), "g")
    assert math.isnan(found["cross_entropy,none"])
    assert math.isnan(found["cross_entropy_stderr,none"])
    assert "mean different things by cross_entropy (cross_entropy(" in caplog.text
    assert "unit='bits'), cross_entropy(" in caplog.text


def test_metrics_of_lm_evals_own_are_left_to_lm_eval():
    listed = [{"metric": "acc"}, {"metric": "bits_per_byte"}]
    made = [task("one", CHOICES[:1], listed, "multiple_choice"), task("two", CHOICES[1:], listed, "multiple_choice")]
    found = results(group("g", made, "acc"))
    assert numbers(found, "g")["acc,none"] == pytest.approx(
        sum(numbers(found, name)["acc,none"] * size for name, size in (("one", 1), ("two", 2))) / 3
    )


def test_groups_are_aggregated_once_however_often_the_hook_is_set():
    before = Group.aggregate.__wrapped__
    aggregate_groups(with_exact_values)
    assert Group.aggregate.__wrapped__ is before


@pytest.fixture
def folder(tmp_path):
    """Two tasks and their group, all documents as one task, and a model."""
    for name, documents in [("one", ROLLING[:1]), ("three", ROLLING[1:]), ("all", ROLLING)]:
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "texts.jsonl", documents)
        (tmp_path / f"{name}.yaml").write_text(
            YAML.format(
                name=name, made_by=OURS, metric_list="metric_list: [{metric: bits_per_byte}]", folder=tmp_path / name
            )
        )
    (tmp_path / "g.yaml").write_text("group: g\ntask: [one, three]\naggregate_metric_list: [{metric: bits_per_byte}]\n")
    return tmp_path


def test_metrics_that_are_added_to_tasks_are_added_to_their_group(folder):
    listed = "aggregate_metric_list: [{metric: bits_per_byte, weight_by_size: false}]"
    (folder / "macro.yaml").write_text(f"group: macro\ntask: [one]\n{listed}\n")
    (folder / "plain.yaml").write_text("group: plain\ntask: [one]\n")
    manager = XentTaskManager(
        include_path=str(folder), include_defaults=False, entries=entries("bits_per_byte", "cross_entropy")
    )
    found = {name: manager.load([name])["groups"][name].aggregate_metric_list for name in ("g", "macro", "plain")}
    assert [(entry.metric, entry.weight_by_size) for entry in found["g"]] == [
        ("bits_per_byte", True),
        ("cross_entropy", True),
    ]
    assert [entry.weight_by_size for entry in found["macro"]] == [False, False]
    assert not found["plain"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["lm_eval", "xent_metrics.cli"])
def test_both_commands_give_the_same_value(folder, command):
    tiny_model("llama_tied").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    arguments = [
        *(("lm-eval",) if command != "lm_eval" else ()), "run", "--model", "hf", "--model_args",
        f"pretrained={folder / 'model'},dtype=float32", "--tasks", "g,all", "--include_path", str(folder),
        "--device", "cpu", "--batch_size", "1", "--output_path", str(folder / "out"),
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", command, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = (folder / "out").rglob("results_*.json")
    found = json.loads(path.read_text())
    for key in ("bits_per_byte,none", "bits_per_byte_stderr,none"):
        assert found["groups"]["g"][key] == found["results"]["all"][key]
