"""The configurations that lm-eval ships, through everything that happens to them before their data load.

A sample of them here; `make test-all-tasks` takes all. Each is refused with its reason or takes the metric, and none fails
in any other way but for a package that its own code imports and that isn't installed.
"""

import collections
import os
from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.tasks._index import Kind, TaskIndex

from xent_metrics.errors import InvalidInputError, MissingScoreError, XentMetricsError
from xent_metrics.hosts.lm_eval.metric_list import ADDED, read_metric_list
from xent_metrics.hosts.lm_eval.task_manager import XentTaskManager

METRICS = ["bits_per_byte", "cross_entropy", "token_accuracy", "expected_calibration_error", "mean_reciprocal_rank"]
EVERY = 1 if os.environ.get("ALL_TASKS") else 130
PATHS = sorted(Path(lm_eval.tasks.__file__).parent.rglob("*.yaml"))
#: The ways in which a task may be refused: each says why.
REASONS = {"written in Python": InvalidInputError, "no gold answer": MissingScoreError, "runs code": MissingScoreError}


@pytest.fixture(scope="module")
def manager():
    return XentTaskManager(include_defaults=False, entries=[{"metric": name} for name in METRICS])


def outcome(config, entry):
    """Whether the task takes the entry, or why not."""
    try:
        read_metric_list({**config, ADDED: [entry]})
    except XentMetricsError as error:
        return reason(error)
    return "taken"


def reason(error):
    """Why a task is refused; the error itself if it isn't for one of our reasons."""
    for text, kind in REASONS.items():
        if isinstance(error, kind) and text in str(error):
            return text
    raise error


def outcomes(manager, path):
    """The outcome of each metric for a YAML, with the output type; None if it isn't a task's."""
    entry = TaskIndex.entry_from_path(path)
    if entry is None or entry.kind not in (Kind.TASK, Kind.PY_TASK):
        return None
    try:
        config = manager._factory._load_full_config(entry)
    except ModuleNotFoundError as error:
        if str(error.name).startswith(("lm_eval", "xent_metrics")):
            raise
        return "", dict.fromkeys(METRICS, f"lacks the package {error.name}")
    except XentMetricsError as error:
        return "", dict.fromkeys(METRICS, reason(error))
    return config.get("output_type", "generate_until"), {name: outcome(config, {"metric": name}) for name in METRICS}


def test_a_shipped_configuration_takes_a_metric_or_says_why_not(manager):
    counts, types = {name: collections.Counter() for name in METRICS}, collections.Counter()
    for path in PATHS[::EVERY]:
        if (found := outcomes(manager, path)) is not None:
            types[found[0]] += 1
            for name, each in found[1].items():
                counts[name][each] += 1
    print(dict(types), *(f"{name}: {dict(found)}" for name, found in counts.items()), sep="\n")
    total = sum(types.values())
    assert total > (10_000 if EVERY == 1 else 50)
    for found in counts.values():
        assert found["taken"] > 0.9 * total
