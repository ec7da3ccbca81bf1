"""lm-eval's output folders, read back: values, and each document's sums, from which errors and comparisons follow.

    lm_eval run … --output_path runs/a --log_samples
    run = read_run("runs/a")

What is damaged or missing is said in `run.problems`, and all the rest can still be used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xent_metrics.analysis.logged import Tokens, tokens_in
from xent_metrics.errors import ComparisonError
from xent_metrics.plugins import get_metric, list_metrics
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums import exact_sum
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.sums.ratio import RatioMetric

__all__ = ["LoggedMean", "Run", "Sample", "TaskRun", "read_run"]

#: Keys of a metric_list entry that are the task's, not the metric's.
_TASK_KEYS = ("metric", "name", "over", "aggregation", "higher_is_better", "hf_evaluate")
#: What a multiple-choice task takes over the choices if its list doesn't say.
_OVER_CHOICES = ("brier_score",)
#: Of which lm-eval logs (loglikelihood, length) a document.
_WEIGHTED = ("bits_per_byte", "byte_perplexity", "word_perplexity")
_NO_FILTER = "none"
_STAND_IN = -1  # the id of a document that isn't one: what a process without documents logs


class LoggedMean(RatioMetric):
    """Mean = Σ value / documents, of a metric of lm-eval's own that samples hold a number of: `acc` and the like.

    >>> LoggedMean("acc", higher_is_better=True).value({"values": torch.tensor(3.0), "documents": torch.tensor(4.0)})
    tensor(0.7500)
    """

    name = "logged_mean"
    formula = "Σ value / documents"
    value_unit = "lm-eval's own"
    row_kinds = frozenset({"document"})

    def __init__(self, called: str, *, higher_is_better: bool | None = None) -> None:
        super().__init__()
        self.called = called
        self._direction = higher_is_better

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]  # torchmetrics lets no instance set it
        return self._direction

    def sum_names(self) -> tuple[str, str]:
        return "values", "documents"

    def per_token(self, scores: TokenScores) -> Tensor:
        return -scores.nll  # a value stands where a host puts a loglikelihood


@dataclass(frozen=True)
class Sample:
    """One document as lm-eval logged it."""

    key: str  # what makes it the same document in another run
    raw: Mapping[str, Any]

    @cached_property
    def tokens(self) -> Tokens | None:
        """Its tokens (of the gold continuation, where there are choices); None where they were not logged."""
        return tokens_in(self.raw)

    def sums(self, name: str) -> Mapping[str, Any] | None:
        """The named sums of our metric `name`, where they were logged, each a number or a list of them."""
        found = self.raw.get(f"{name}_stderr")
        if not isinstance(found, dict) or not all(_is_numbers(value) for value in found.values()):
            return None
        return found


@dataclass
class TaskRun:
    """One task of a run: each metric's value and standard error, and the documents.

    `values`, `standard_errors` and `metrics` go by the name in the results, with the filter behind a comma where there is
    one: ``exact_match,strict-match``.
    """

    name: str
    version: Any
    metrics: dict[str, TokenMetric]
    values: dict[str, float]
    standard_errors: dict[str, float]
    samples: list[Sample] = field(default_factory=list)
    filtered: dict[str, list[Sample]] = field(default_factory=dict)  # of the other filters, in the same order

    def states(self, name: str) -> Tensor | None:
        """The packed sums of each document, ``(D, rows, 8)``, in the samples' order; None where they were not logged."""
        metric = self.metrics[name]
        name, _, filter_name = name.partition(",")
        samples = self.filtered.get(filter_name, []) if filter_name else self.samples
        names = list(metric.unpack(exact_sum.to_float(metric.state)))
        logged = [_sums_in(sample, name, metric) for sample in samples]
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
        samples = path.parent / f"samples_{name}_{date[0] if date else ''}.jsonl"
        tasks[name] = _task(name, config, results, samples, problems)
    return Run(path, str(results.get("model_name") or path.parent.name), tasks, problems)


def _task(name: str, config: Any, results: Mapping[str, Any], samples: Path, problems: list[str]) -> TaskRun:
    values, errors = _values(results["results"][name])
    by_filter: dict[str, list[Sample]] = {}
    for sample in _samples(samples, name, problems):
        by_filter.setdefault(str(sample.raw.get("filter", _NO_FILTER)), []).append(sample)
    first = _NO_FILTER if _NO_FILTER in by_filter else next(iter(by_filter), _NO_FILTER)
    version = (results.get("versions") or {}).get(name)
    task = TaskRun(name, version, {}, values, errors, by_filter.get(first, []), by_filter)
    better = (results.get("higher_is_better") or {}).get(name) or {}
    task.metrics |= _metrics(config, name, problems)
    for key in sorted(values.keys() - task.metrics.keys()):
        name_alone = key.partition(",")[0]
        direction = better.get(name_alone)
        mean = LoggedMean(key, higher_is_better=direction if isinstance(direction, bool) else None)
        _add_theirs(task, key, get_metric(name_alone) if name_alone in _WEIGHTED else mean)
    return task


def _add_theirs(task: TaskRun, key: str, metric: TokenMetric) -> None:
    """A metric of lm-eval's own, where `metric` makes the same value of what the samples hold."""
    task.metrics[key] = metric
    states = task.states(key)
    again = math.nan if states is None else float(metric.value_of(exact_sum.merge(states)))
    if not math.isclose(again, task.values[key], rel_tol=1e-6, abs_tol=1e-9):
        del task.metrics[key]


def _sums_in(sample: Sample, name: str, metric: TokenMetric) -> Mapping[str, Any] | None:
    """The named sums of a document: those that we logged, or what lm-eval logged of a metric of its own."""
    value = sample.raw.get(name)
    if isinstance(metric, LoggedMean):
        return {"values": float(value), "documents": 1.0} if isinstance(value, int | float) else None
    if isinstance(metric, RatioMetric) and isinstance(value, list) and len(value) == 2 and _is_numbers(value):
        return dict(zip(metric.ratio_names(), (-value[0], value[1]), strict=True))
    return sample.sums(name)


def _newest(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.rglob("results_*.json"), key=lambda file: file.name)
    if not found:
        raise ComparisonError(f"{path}: no results_*.json under it. Write them with lm_eval run … --output_path {path}")
    folders = sorted({file.parent for file in found})
    if len(folders) > 1:
        raise ComparisonError(f"{path} holds runs in several folders; name one of them: {', '.join(map(str, folders))}")
    return found[-1]


def _load(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ComparisonError(f"{path}: not readable as JSON: {error}") from error
    return results if isinstance(results, dict) else {}


def _values(found: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Values and standard errors by the metric's name, and its filter where it has one."""
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in found.items():
        metric, comma, filter_name = key.partition(",")
        if comma and isinstance(value, int | float):
            behind = "" if filter_name == _NO_FILTER else f",{filter_name}"
            place = errors if metric.endswith("_stderr") else values
            place[metric.removesuffix("_stderr") + behind] = float(value)
    return values, errors


def _metrics(config: Any, task: str, problems: list[str]) -> dict[str, TokenMetric]:
    """Our metrics of a task, built again from its configuration."""
    built: dict[str, TokenMetric] = {}
    for entry in (config.get("metric_list") or []) if isinstance(config, dict) else []:
        if not isinstance(entry, dict) or entry.get("metric") not in list_metrics() or "aggregation" in entry:
            continue
        options = {key: value for key, value in entry.items() if key not in _TASK_KEYS}
        try:
            metric = get_metric(entry["metric"], **options)
        except Exception as error:  # an option may name what only the other machine had
            problems.append(f"task {task}: {entry['metric']} can't be built as it was: {error}")
            continue
        if config.get("output_type") == "multiple_choice" and _is_over_choices(entry):
            metric.value_unit = metric.value_unit.replace("token", "question")
        built[str(entry.get("name", entry["metric"]))] = metric
    return built


def _is_over_choices(entry: Mapping[str, Any]) -> bool:
    over = entry.get("over") or ("choices" if entry["metric"] in _OVER_CHOICES else "gold")
    return bool(over == "choices")


def _samples(path: Path, task: str, problems: list[str]) -> Iterator[Sample]:
    if not path.is_file():
        problems.append(f"task {task}: no samples beside the results ({path.name}); write them with --log_samples")
        return
    seen: dict[str, int] = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                raw = json.loads(line)
                key = f"{raw['doc_hash']} {raw['target_hash']}"
                counted = f"{key} {raw.get('filter')}"
            except (ValueError, KeyError, TypeError) as error:
                what = {ValueError: "cut off or not JSON", KeyError: f"without {error}"}.get(
                    _kind(error), "no document"
                )
                problems.append(f"task {task}: line {number} of {path.name} is {what}; the document is left out")
                continue
            if raw.get("doc_id") == _STAND_IN:
                continue
            seen[counted] = seen.get(counted, 0) + 1
            yield Sample(f"{key} {seen[counted]}", raw)


def _kind(error: Exception) -> type[Exception]:
    return ValueError if isinstance(error, ValueError) else type(error)


def _is_numbers(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return all(isinstance(number, int | float) for number in numbers)
