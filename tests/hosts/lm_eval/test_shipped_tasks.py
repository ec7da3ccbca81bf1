"""The configurations that lm-eval ships, through everything that happens to them before their data load.

A sample of them here; `make test-all-tasks` takes all, and prints which are refused and which lm-eval itself can't load here,
mostly for a package that isn't installed. Nothing else may fail.
"""

import collections
import os
from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from xent_metrics.errors import InvalidInputError, MissingScoreError, XentMetricsError
from xent_metrics.hosts.lm_eval.metric_list import ADDED, read_metric_list
from xent_metrics.hosts.lm_eval.task_manager import XentTaskManager

METRICS = ["bits_per_byte", "cross_entropy", "token_accuracy", "expected_calibration_error", "mean_reciprocal_rank"]
EVERY = 1 if os.environ.get("ALL_TASKS") else 130
FOLDER = Path(lm_eval.tasks.__file__).parent
PATHS = sorted(FOLDER.rglob("*.yaml"))
#: The ways in which a task may be refused: each says why.
REASONS = {"written in Python": InvalidInputError, "no gold answer": MissingScoreError, "runs code": MissingScoreError}


@pytest.fixture(scope="module")
def manager():
    return XentTaskManager(include_defaults=False, entries=[{"metric": name} for name in METRICS])


def reason(error):
    """Why a task is refused; raises the error if it isn't for one of our reasons."""
    for text, kind in REASONS.items():
        if isinstance(error, kind) and text in str(error):
            return text
    raise error


def outcome(config, name):
    """Whether the task takes the metric, or why not."""
    try:
        read_metric_list({**config, ADDED: [{"metric": name}]})
    except XentMetricsError as error:
        return reason(error)
    return "taken"


def outcomes(manager, path):
    """The outcome of each metric for a YAML; None if it isn't a task's."""
    listed = load_yaml(path, resolve_func=False)
    if "task" not in listed or TaskIndex._kind_of(listed) not in (Kind.TASK, Kind.PY_TASK):
        return None
    entry = TaskIndex.entry_from_path(path)
    try:
        config = TaskFactory()._load_full_config(entry)
    except (Exception, SystemExit) as error:  # without a line of ours
        return dict.fromkeys(METRICS, f"lm-eval can't load it: {error!r:.120}")
    try:
        config = manager._factory._load_full_config._configure(entry.name, config)
    except XentMetricsError as error:
        return dict.fromkeys(METRICS, reason(error))
    return {name: outcome(config, name) for name in METRICS}


def test_a_shipped_configuration_takes_a_metric_or_says_why_not(manager):
    found = {path: each for path in PATHS[::EVERY] if (each := outcomes(manager, path)) is not None}
    for name in METRICS:
        print(name, collections.Counter(each[name].partition(":")[0] for each in found.values()))
    for path, each in found.items():
        if (why := each[METRICS[0]]) != "taken":
            print(path.relative_to(FOLDER), why, sep=": ")
    assert len(found) > (10_000 if EVERY == 1 else 50)
    assert all(sum(each[name] == "taken" for each in found.values()) > 0.9 * len(found) for name in METRICS)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gsm8k/gsm8k.yaml", "taken"),
        ("triviaqa/default.yaml", "taken"),
        ("truthfulqa/truthfulqa_gen.yaml", "no gold answer"),  # its doc_to_target is a space
        ("cruxeval/cruxeval_output.yaml", "runs code"),
        ("unitxt/xsum.yaml", "written in Python"),
        ("mmlu/default/_mmlu.yaml", None),
    ],
)
def test_what_becomes_of_some(name, why, manager):
    found = outcomes(manager, FOLDER / name)
    assert (found and set(found.values())) == (why and {why})
