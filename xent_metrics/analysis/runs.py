"""lm-eval's output folders read back: values, and the sums of each document, from which errors and comparisons follow.

    lm_eval run … --output_path runs/a --log_samples
    run = read_run("runs/a")

Damaged or missing parts are reported in `run.problems`; everything else can still be used. Of the documents only their sums are
held in memory.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from xent_metrics.analysis.json_lines import JsonLines
from xent_metrics.analysis.logged_sums import sums_of
from xent_metrics.analysis.parquet_samples import ParquetSamples
from xent_metrics.analysis.results_file import NO_FILTER, load_results, part_of, reported_values
from xent_metrics.analysis.run_metrics import configured_metrics, lm_eval_metric, over_choices, unregistered_metrics
from xent_metrics.analysis.samples import Sample, Samples, Source, read_samples
from xent_metrics.analysis.sums_by_document import SumsByDocument
from xent_metrics.analysis.token_columns import TokenColumns
from xent_metrics.errors import ComparisonError, MissingExtraError
from xent_metrics.plugins import provenance
from xent_metrics.sums.metric import TokenMetric

__all__ = ["Run", "TaskRun", "read_run"]


@dataclass
class TaskRun:
    """One task of a run: each metric's value and standard error, and the documents.

    `values`, `standard_errors` and `metrics` are keyed by the name in the results, followed by a comma and the filter if
    there is one: ``exact_match,strict-match``. `samples` are the documents of the first filter, `filtered` those of
    each filter by its name; those of a file are read when they are asked for. `evaluated` is how many documents the results
    speak of; `damaged` says which lines of samples can't be read, and `unusable`, by the metrics' keys, why the documents of
    a metric can't be used. `over_choices` are the metrics of which each row is a question.
    """

    name: str
    version: Any
    metrics: dict[str, TokenMetric]
    values: dict[str, float]
    standard_errors: dict[str, float]
    samples: Sequence[Sample] = ()
    filtered: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    evaluated: int = 0
    damaged: list[str] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)
    over_choices: set[str] = field(default_factory=set)

    def rows_of(self, key: str) -> str:
        """The plural noun for what a metric counts: questions if it is over their choices, otherwise tokens."""
        return "questions" if key in self.over_choices else "tokens"

    def samples_of(self, key: str) -> Sequence[Sample]:
        """The documents of the metric's own filter."""
        _, _, filter_name = key.partition(",")
        return self.filtered.get(filter_name, ()) if filter_name else self.samples

    @cached_property
    def token_columns(self) -> TokenColumns:
        """The ids and losses of the documents' tokens, in chunks."""
        return TokenColumns(self.samples)

    def why_unusable(self, key: str, *, even_some: bool = False) -> str:
        """Why the documents of a metric can't be used, or not all of them; empty if they can."""
        documents = len(self.samples_of(key))
        if not documents:
            return "evaluate with --log_samples"
        if documents < self.evaluated and not even_some:
            return f"its samples hold {documents} of {self.evaluated} documents"
        return self.unusable.get(key, "")

    def sums(self, key: str, *, even_some: bool = False) -> SumsByDocument | None:
        """The sums of each document, in the order of `samples_of`; None if there are none to use.

        Args:
            key: the metric's.
            even_some: take the documents that are there, though others are missing.
        """
        if self.why_unusable(key, even_some=even_some):
            return None
        samples = self.samples_of(key)
        if isinstance(samples, Samples):
            return samples.sums.get(key)
        return sums_of((sample.raw for sample in samples), key.partition(",")[0], self.metrics[key])

    def states(self, key: str, *, even_some: bool = False) -> Tensor | None:
        """The packed sums of each document, ``(D, rows, 8)``: `sums` in eight times the memory."""
        found = self.sums(key, even_some=even_some)
        return None if found is None else found.states()


@dataclass
class Run:
    """One evaluation: its tasks, the problems met while reading it, and all that its results file says."""

    path: Path
    model: str
    tasks: dict[str, TaskRun]
    problems: list[str]
    results: Mapping[str, Any] = field(default_factory=dict)


def read_run(folder: str | Path, *, tasks: Collection[str] | None = None) -> Run:
    """Read the newest results in an lm-eval output folder, or one results file, and the samples beside it.

    Args:
        folder: the folder given as `--output_path`, or a results file.
        tasks: the tasks to read, of those that the run has; all by default.

    Raises:
        ComparisonError: there are no results, or they are not lm-eval's.
    """
    path = _newest(Path(folder))
    results = load_results(path)
    problems: list[str] = []
    found = {}
    for name, config in results["configs"].items():
        if tasks is not None and name not in tasks:
            continue
        if isinstance(results["results"].get(name), dict):
            found[name] = _task(name, config, results, _samples_path(path, name), problems)
        else:
            problems.append(f"task {name}: configured, but without results")
    return Run(path, str(results.get("model_name") or path.parent.name), found, problems, results)


def _newest(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.rglob("results_*.json"), key=lambda file: file.name)
    if not path.exists():
        raise ComparisonError(
            f"{path}: there is no such folder or file; expected lm-eval's --output_path, or a results file"
        )
    if not found:
        raise ComparisonError(f"{path}: no results_*.json in it. Write them with lm_eval run … --output_path {path}")
    folders = sorted({file.parent for file in found})
    if len(folders) > 1:
        raise ComparisonError(f"{path} holds several runs; pass one of these folders: {', '.join(map(str, folders))}")
    return found[-1]


def _samples_path(results: Path, task: str) -> Path:
    """The samples file of the results' date."""
    date = re.search(r"\d{4}-\d\d-\d\dT.*", results.stem)
    return results.parent / f"samples_{task}_{date[0] if date else ''}.jsonl"


def _task(name: str, config: Any, results: Mapping[str, Any], samples: Path, problems: list[str]) -> TaskRun:
    values, errors = reported_values(results["results"][name])
    damaged: list[str] = []
    others: list[str] = []
    configured = configured_metrics(config, name, others)
    directions = _of_task(results, "higher_is_better", name, problems)
    lm_evals = {
        key: lm_eval_metric(key, directions.get(key.partition(",")[0])) for key in sorted(values.keys() - configured)
    }
    source = _source(samples, name, damaged, lambda damage: problems.append(f"task {name}: {damage}"))
    by_filter = {} if source is None else read_samples(source, name, damaged, {**lm_evals, **configured})
    first = NO_FILTER if NO_FILTER in by_filter else next(iter(by_filter), NO_FILTER)
    version = part_of(results, "versions", problems).get(name)
    task = TaskRun(name, version, configured, values, errors, by_filter.get(first, ()), by_filter)
    task.evaluated, task.damaged = _evaluated(results, name, problems), damaged
    problems += damaged + others
    task.over_choices = over_choices(config)
    problems += _check_documents(task)
    problems += _set_unregistered_aside(task, config, part_of(results, "xent_metrics", problems).get("plugins"))
    for key, metric in lm_evals.items():
        if key not in task.unusable:
            _add_if_reproduced(task, key, metric)
    return task


def _source(samples: Path, task: str, problems: list[str], report: Callable[[str], None]) -> Source | None:
    """The file of a task's samples, in Parquet or in lines; `problems` says why there is none, or why not in Parquet.

    What is found to be damaged later is reported.
    """
    if not samples.name.startswith(f"samples_{task}_"):  # it has a separator in it
        problems.append(f"task {task}: its name can't be part of a file's, so that it has no samples")
        return None
    in_parquet = samples.with_suffix(".parquet")
    if os.path.isfile(in_parquet):
        try:
            return ParquetSamples(in_parquet, report)
        except (MissingExtraError, ValueError) as error:
            problems.append(f"task {task}: {in_parquet.name} isn't read: {error}")
    if os.path.isfile(samples):
        return JsonLines(samples)
    if not os.path.isfile(in_parquet):
        problems.append(
            f"task {task}: no samples beside the results ({samples.name}, or .parquet); evaluate with --log_samples"
        )
    return None


def _of_task(results: Mapping[str, Any], part: str, task: str, problems: list[str]) -> Mapping[str, Any]:
    return part_of(part_of(results, part, problems), task, problems, where=f"`{part}` of ")


def _evaluated(results: Mapping[str, Any], task: str, problems: list[str]) -> int:
    """How many documents the results speak of; 0 if they don't say."""
    found = _of_task(results, "n-samples", task, problems).get("effective", 0)
    if type(found) is int and found >= 0:
        return found
    problems.append(
        f"task {task}: the results give {found!r:.40} as its number of documents, so that missing ones aren't noticed"
    )
    return 0


def _check_documents(task: TaskRun) -> list[str]:
    """Set aside the documents of our metrics that don't give the values in the results; returns what is wrong with them."""
    keys = sorted(task.metrics.keys() & task.values.keys())
    for key in keys:
        sums = task.sums(key)
        value = math.nan if sums is None else sums.value(task.metrics[key])
        if sums is not None and not _agree(value, task.values[key]):
            task.unusable[key] = f"its samples give {value:.6g}, the results say {task.values[key]:.6g}"
    reasons = {key: task.why_unusable(key) for key in keys if task.samples_of(key)}
    return [
        f"task {task.name}: {', '.join(key for key in keys if reasons.get(key) == reason)}: {reason}; its documents are not used"
        for reason in dict.fromkeys(filter(None, reasons.values()))
    ]


def _set_unregistered_aside(task: TaskRun, config: Any, recorded: Any) -> list[str]:
    """Set aside the metrics of plugins that aren't loaded: those that logged sums, under names that aren't registered."""
    found = unregistered_metrics(config).items()
    summed = task.samples.summed if isinstance(task.samples, Samples) else frozenset()
    missing = {name: metric for name, metric in found if name in summed}
    for name, metric in missing.items():
        task.unusable[name] = f"no loaded plugin registers {metric}; {_what_to_load(recorded)}"
    return [f"task {task.name}: {name} is left out: {task.unusable[name]}" for name in missing]


def _what_to_load(recorded: Any) -> str:
    """What to do about a missing plugin; `recorded` are the run's plugins, as its results name them."""
    loaded = {plugin["name"] for plugin in provenance()["plugins"]}
    used = [plugin for plugin in recorded or [] if isinstance(plugin, dict) and plugin.get("name") not in loaded]
    named = ", ".join(f"{each['name']} ({each.get('distribution')} {each.get('version')})" for each in used)
    if not named:
        return "install the plugin that has it"
    return f"the run used {named}, not loaded here: install it, or name it in XENT_METRICS_PLUGINS"


def _agree(value: float, reported: float) -> bool:
    both_nan = math.isnan(value) and math.isnan(reported)
    return both_nan or math.isclose(value, reported, rel_tol=1e-6, abs_tol=1e-9)


def _add_if_reproduced(task: TaskRun, key: str, metric: TokenMetric) -> None:
    """Add a metric of lm-eval's own if `metric` reproduces its value from the samples."""
    task.metrics[key] = metric
    sums = task.sums(key)
    reproduced = math.nan if sums is None else sums.value(metric)
    if math.isnan(reproduced) or not _agree(reproduced, task.values[key]):
        del task.metrics[key]
