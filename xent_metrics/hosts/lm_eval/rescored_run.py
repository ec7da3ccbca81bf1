"""Writes what `xent rescore` computed as a run of its own, which every reader of runs takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from xent_metrics.analysis.json_lines import encodable_json
from xent_metrics.analysis.parquet_samples import Results, write_parquet_samples
from xent_metrics.analysis.runs import Run
from xent_metrics.analysis.samples import Samples
from xent_metrics.errors import ComparisonError
from xent_metrics.files import replacing, require_writable
from xent_metrics.hosts.lm_eval.documents import DocumentSums, DocumentValue
from xent_metrics.hosts.lm_eval.rescore import RescoredTask
from xent_metrics.plugins import provenance

__all__ = ["folder_for", "write_rescored"]

#: What the results say of groups of tasks, whose values aren't computed again.
_OF_GROUPS = ("groups", "group_subtasks")


def folder_for(run: Run, folder: str | Path) -> Path:
    """The folder of the run's model inside `folder`, where lm-eval, too, would write.

    Raises:
        ComparisonError: it holds a run.
    """
    target = Path(folder) / run.path.resolve().parent.name
    if found := next(target.glob("results_*.json"), None):
        raise ComparisonError(f"{found} is a run already; choose another folder for --output")
    require_writable(target)
    return target


def write_rescored(run: Run, rescored: Sequence[RescoredTask], folder: str | Path) -> Path:
    """Write results and samples with the new metrics alone, in lm-eval's format, and return the results file.

    All else that the run says is copied, and ``rescored`` says from which file, and by which version and plugins.

    Raises:
        ComparisonError: the folder holds a run.
    """
    target = folder_for(run, folder)
    target.mkdir(parents=True, exist_ok=True)
    date = datetime.now().isoformat().replace(":", "-")
    for task in rescored:
        samples = target / f"samples_{task.task.name}_{date}.jsonl"
        lines = ((encodable_json(each), results) for each, results in _samples(task))
        if isinstance(task.task.samples, Samples) and task.task.samples.source.has_columns:
            write_parquet_samples(samples.with_suffix(".parquet"), ((line, results()) for line, results in lines))
            continue
        with replacing(samples) as new, new.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line, _ in lines)
    path = target / f"results_{date}.json"
    with replacing(path) as new:  # last, so that results always have their samples
        new.write_text(encodable_json(_results(run, rescored), indent=2), encoding="utf-8")
    return path


def _samples(task: RescoredTask) -> Iterator[tuple[dict[str, Any], Callable[[], Results]]]:
    """The documents with the new metrics, and what gives the tokens that aren't in them."""
    for sample, values in zip(task.samples, task.documents, strict=True):
        yield _sample(task, sample.raw, values), sample.results


def _sample(task: RescoredTask, raw: Mapping[str, Any], values: Sequence[DocumentValue]) -> dict[str, Any]:
    """A document as lm-eval logs it, with the new metrics in place of those of the run."""
    new: dict[str, Any] = {}
    for entry, value in zip(task.entries, values, strict=True):
        new |= {entry.name: float(value), f"{entry.name}_sums": dict(DocumentSums.of(entry.metric, value.sums))}
    old = raw.get("metrics")
    kept = {key: value for key, value in raw.items() if not (isinstance(old, list) and key in old)}
    return kept | {"filter": "none", "metrics": [*new]} | new


def _results(run: Run, rescored: Sequence[RescoredTask]) -> dict[str, Any]:
    kept = {key: value for key, value in run.results.items() if key not in _OF_GROUPS}
    by_task: dict[str, dict[str, Any]] = {
        "results": {task.task.name: _values(task) for task in rescored},
        "configs": {
            task.task.name: {**_mapping(run.results["configs"], task.task.name), "metric_list": list(task.listed)}
            for task in rescored
        },
        "higher_is_better": {
            task.task.name: {entry.name: entry.metric.higher_is_better for entry in task.entries} for task in rescored
        },
        "n-samples": {task.task.name: _numbers(run, task) for task in rescored},
    }
    return kept | by_task | {"rescored": {"run": str(run.path), "xent_metrics": provenance()}}


def _values(task: RescoredTask) -> dict[str, Any]:
    found: dict[str, Any] = {"alias": task.task.name}
    for name, (value, error) in task.values.items():
        found |= {f"{name},none": value, f"{name}_stderr,none": error}
    return found


def _numbers(run: Run, task: RescoredTask) -> dict[str, Any]:
    return {**_mapping(_mapping(run.results, "n-samples"), task.task.name), "effective": len(task.samples)}


def _mapping(results: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of the results; empty if it isn't there, or something else."""
    part = results.get(name)
    return part if isinstance(part, dict) else {}
