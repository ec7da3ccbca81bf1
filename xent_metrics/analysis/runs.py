"""lm-eval's output folders, read back: values, and each document's sums, from which errors and comparisons follow.

    lm_eval run … --output_path runs/a --log_samples
    run = read_run("runs/a")

What is damaged or missing is said in `run.problems`, and all the rest can still be used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import exact_sum
from ..errors import ComparisonError, XentMetricsError
from ..metric import TokenMetric
from ..plugins import get_metric, list_metrics

__all__ = ["Run", "Sample", "TaskRun", "read_run"]

#: Keys of a metric_list entry that are the task's, not the metric's.
_TASK_KEYS = ("metric", "name", "over", "aggregation", "higher_is_better", "hf_evaluate")


@dataclass(frozen=True)
class Sample:
    """One document as lm-eval logged it."""

    key: str  # what makes it the same document in another run
    raw: Mapping[str, Any]

    def sums(self, name: str) -> Mapping[str, Any] | None:
        """The named sums of the metric `name`, where they were logged."""
        found = self.raw.get(f"{name}_stderr")
        return found if isinstance(found, dict) else None


@dataclass
class TaskRun:
    """One task of a run: each metric's value and standard error, and the documents."""

    name: str
    version: Any
    metrics: dict[str, TokenMetric]  # ours, by the name in the results
    values: dict[str, float]
    standard_errors: dict[str, float]
    samples: list[Sample] = field(default_factory=list)

    def states(self, name: str) -> Tensor | None:
        """The packed sums of each document, ``(D, rows, 8)``, in the samples' order; None where they were not logged."""
        metric = self.metrics[name]
        logged = [sample.sums(name) for sample in self.samples]
        names = list(metric.unpack(exact_sum.to_float(metric.state)))
        sums = [found for found in logged if found is not None and found.keys() >= set(names)]
        if not sums or len(sums) < len(logged):
            return None
        return metric.pack({n: torch.tensor([found[n] for found in sums], dtype=torch.float64) for n in names})


@dataclass
class Run:
    """One evaluation: its tasks, and what could not be read of it."""

    path: Path
    model: str
    tasks: dict[str, TaskRun]
    problems: list[str]


def read_run(folder: str | Path) -> Run:
    """Read the newest results under an output folder of lm-eval, or a results file itself, and the samples beside it.

    Raises:
        ComparisonError: no results there, or not lm-eval's.
    """
    path = _newest(Path(folder))
    results = _load(path)
    problems: list[str] = []
    if not isinstance(results.get("results"), dict) or not isinstance(results.get("configs"), dict):
        raise ComparisonError(
            f"{path}: expected lm-eval's results with `results` and `configs`; got {', '.join(results) or 'nothing'}. "
            f"They were read as lm-eval 0.4 writes them (this file: {results.get('lm_eval_version', 'no version')})"
        )
    date = re.search(r"\d{4}-\d\d-\d\dT.*", path.stem)
    tasks = {}
    for name, config in results["configs"].items():
        found = results["results"].get(name)
        if not isinstance(found, dict):
            problems.append(f"task {name}: configured, but without results")
            continue
        version = results.get("versions", {}).get(name)
        task = TaskRun(name, version, _metrics(config, name, problems), *_values(found))
        task.samples = list(_samples(path.parent / f"samples_{name}_{date[0] if date else ''}.jsonl", name, problems))
        tasks[name] = task
    return Run(path, str(results.get("model_name") or path.parent.name), tasks, problems)


def _newest(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.rglob("results_*.json"), key=lambda file: file.name)
    if not found:
        raise ComparisonError(f"{path}: no results_*.json under it. Write them with lm_eval run … --output_path {path}")
    return found[-1]


def _load(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ComparisonError(f"{path}: not readable as JSON: {error}") from error
    return results if isinstance(results, dict) else {}


def _values(found: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Values and standard errors of the unfiltered results by the metric's name."""
    numbers = {k.split(",")[0]: float(v) for k, v in found.items() if "," in k and isinstance(v, int | float)}
    errors = {name.removesuffix("_stderr"): v for name, v in numbers.items() if name.endswith("_stderr")}
    return {name: v for name, v in numbers.items() if not name.endswith("_stderr")}, errors


def _metrics(config: Any, task: str, problems: list[str]) -> dict[str, TokenMetric]:
    """Our metrics of a task, built again from its configuration."""
    built: dict[str, TokenMetric] = {}
    for entry in (config.get("metric_list") or []) if isinstance(config, dict) else []:
        if not isinstance(entry, dict) or entry.get("metric") not in list_metrics():
            continue
        options = {key: value for key, value in entry.items() if key not in _TASK_KEYS}
        try:
            built[str(entry.get("name", entry["metric"]))] = get_metric(entry["metric"], **options)
        except XentMetricsError as error:
            problems.append(f"task {task}: {entry['metric']} can't be built as it was: {error}")
    return built


def _samples(path: Path, task: str, problems: list[str]) -> Iterator[Sample]:
    if not path.is_file():
        problems.append(f"task {task}: no samples beside the results ({path.name}); write them with --log_samples")
        return
    seen: dict[str, int] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                raw = json.loads(line)
                key = f"{raw['doc_hash']} {raw['target_hash']}"
            except (ValueError, KeyError, TypeError) as error:
                what = "cut off or not JSON" if isinstance(error, ValueError) else f"without {error}"
                problems.append(f"task {task}: line {number} of {path.name} is {what}; the document is left out")
                continue
            seen[key] = seen.get(key, 0) + 1
            yield Sample(f"{key} {seen[key]}", raw)
