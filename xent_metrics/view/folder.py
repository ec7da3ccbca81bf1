"""A folder of runs, followed while runs are written, replaced and deleted.

Results files are found anywhere in the folder and read again when their time or size changes. What can't be read is named, and
all else is shown. Nothing is ever written into the folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any

from xent_metrics.analysis.results_file import load_results
from xent_metrics.errors import ComparisonError
from xent_metrics.view.links import slug
from xent_metrics.view.summaries import RunSummary, read_summary

if TYPE_CHECKING:  # what reads samples takes torch, and is imported when it is needed
    from xent_metrics.analysis.run_comparison import RunComparison
    from xent_metrics.analysis.runs import Run, TaskRun
    from xent_metrics.view.ranking import Ranking

__all__ = ["RESAMPLES", "OpenedTask", "Problem", "RunFolder", "Snapshot"]

_SECONDS_BETWEEN_SCANS = 1.0
_TASKS_KEPT = 4  # with their samples, which may be large
_COMPARISONS_KEPT = 5_000
RESAMPLES = 9999  # of each permutation test


@dataclass(frozen=True)
class Problem:
    """Something that can't be shown, and why; or, among a snapshot's notes, what is good to know of it."""

    place: str
    text: str


@dataclass(frozen=True)
class Snapshot:
    """The runs as they were when the folder was last read.

    `problems` are what can't be shown, `notes` what is good to know. `version` changes with every change in the folder. `gone`
    says when and how the folder disappeared; empty while it is there.
    """

    runs: tuple[RunSummary, ...]
    problems: tuple[Problem, ...]
    version: str
    gone: str = ""
    notes: tuple[Problem, ...] = ()

    @cached_property
    def by_slug(self) -> Mapping[str, RunSummary]:
        """The runs by their slugs."""
        return {run.slug: run for run in self.runs}

    @cached_property
    def tasks(self) -> Mapping[str, tuple[RunSummary, ...]]:
        """The runs of each task and group, by its name."""
        found: dict[str, list[RunSummary]] = {}
        for run in self.runs:
            for name in run.tasks:
                found.setdefault(name, []).append(run)
        return {name: tuple(runs) for name, runs in found.items()}

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The names of all metrics, the most frequent first."""
        counts: dict[str, int] = defaultdict(int)
        for run in self.runs:
            for task in run.tasks.values():
                for metric in task.values:
                    counts[metric] += 1
        return tuple(sorted(counts, key=lambda metric: (-counts[metric], metric)))

    @cached_property
    def names_by_slug(self) -> Mapping[str, str]:
        """The tasks and metrics by their slugs."""
        return {slug(name): name for name in (*self.metrics, *self.tasks)}


@dataclass
class OpenedTask:
    """A task of a run with its samples; the run has no other task, and its problems are those of this one."""

    run: Run
    task: TaskRun

    @cached_property
    def ranking(self) -> Ranking:
        """The documents, those with the highest loss first and those without one last."""
        from xent_metrics.view.ranking import Ranking

        return Ranking.by_loss(self.task)


#: Which file it is, and in which state.
_Stamp = tuple[str, int, int]


class RunFolder:
    """The runs in a folder.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock, self._samples_lock = Lock(), RLock()
        self._scanned = -float("inf")
        self._snapshot = Snapshot((), (), "")
        self._read: dict[_Stamp, RunSummary | Problem] = {}
        self._tasks: OrderedDict[Any, OpenedTask] = OrderedDict()
        self._comparisons: OrderedDict[Any, list[RunComparison]] = OrderedDict()

    def snapshot(self, *, now: bool = False) -> Snapshot:
        """The runs, at most a second old, or as they are `now`."""
        with self._lock:
            if now or time.monotonic() - self._scanned > _SECONDS_BETWEEN_SCANS:
                self._snapshot = self._scan()
                self._scanned = time.monotonic()
            return self._snapshot

    def _scan(self) -> Snapshot:
        if not self.root.is_dir():
            if self._snapshot.gone:
                return self._snapshot
            text = f"{self.root} is gone since {time.strftime('%H:%M:%S')}. What was read before is shown."
            return replace(self._snapshot, gone=text, version=self._snapshot.version + "-gone")
        results, problems = _find(self.root)
        self._read = {stamp: self._read.get(stamp) or self._summary(stamp, results[stamp]) for stamp in results}
        found = self._read.values()
        runs = sorted(_told_apart(found), key=lambda run: _natural(run.name))
        problems += [each for each in found if isinstance(each, Problem)]
        problems += [Problem(run.name, text) for run in runs for text in run.problems]
        version = hashlib.sha256(repr((sorted(results), problems)).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return Snapshot(tuple(runs), tuple(problems), version, notes=tuple(_same_names(runs)))

    def _summary(self, stamp: _Stamp, name: str) -> RunSummary | Problem:
        """A run, or why it can't be read; whatever is in a file of somebody else's."""
        path = Path(stamp[0])
        try:
            return read_summary(path, name)
        except ComparisonError as error:
            return Problem(name, f"{error.message}. If it is still being written, it is read again when it changes")
        except Exception as error:
            return Problem(name, f"{path}: not a results file of lm-eval: {type(error).__name__}: {error}")

    def task(self, run: RunSummary, task: str) -> OpenedTask:
        """One task of a run with its samples.

        Raises:
            ComparisonError: the files can't be read, or the task is a group, which has no documents of its own.
        """
        key = _state(run, task)
        with self._samples_lock:
            if key not in self._tasks:
                self._tasks[key] = _read_task(run, task)
            self._tasks.move_to_end(key)
            while len(self._tasks) > _TASKS_KEPT:
                self._tasks.popitem(last=False)
            return self._tasks[key]

    def compare(self, a: RunSummary, b: RunSummary, task: str) -> list[RunComparison]:
        """The metrics of a task in run B compared with those in run A, by documents.

        Raises:
            ComparisonError: one of them can't be read.
        """
        from xent_metrics.analysis.run_comparison import compare_runs

        key = (_state(a, task), _state(b, task))
        with self._samples_lock:
            if key not in self._comparisons:
                self._comparisons[key] = compare_runs(
                    self.task(a, task).run, self.task(b, task).run, num_resamples=RESAMPLES
                )
            while len(self._comparisons) > _COMPARISONS_KEPT:
                self._comparisons.popitem(last=False)
            return self._comparisons[key]

    def configuration(self, run: RunSummary, task: str) -> Any:
        """A task's configuration as the results have it; empty for a group.

        Raises:
            ComparisonError: the results can't be read any more.
        """
        return load_results(run.path)["configs"].get(task, {})


def _find(root: Path) -> tuple[dict[_Stamp, str], list[Problem]]:
    """The results files with the names of their runs, and what was met on the way."""
    problems: list[Problem] = []
    found: dict[_Stamp, str] = {}

    def unreadable(error: OSError) -> None:
        problems.append(Problem(str(error.filename), f"can't be read: {error.strerror}"))

    for folder, names in _folders(root, unreadable):
        relative = os.path.relpath(folder, root)
        called = root.resolve().name if relative == "." else Path(relative).as_posix()
        results = sorted(name for name in names if name.startswith("results_") and name.endswith(".json"))
        if not results and any(name.startswith("samples_") for name in names):
            problems.append(Problem(called, "samples without results: the run is still being written, or was stopped"))
        for name in results:
            path = os.path.join(folder, name)
            try:
                state = os.stat(path)
            except OSError as error:  # deleted meanwhile, or a link to nothing
                unreadable(error)
                continue
            date = name.removeprefix("results_").removesuffix(".json")
            found[path, state.st_mtime_ns, state.st_size] = called if len(results) == 1 else f"{called} {date}"
    return found, problems


def _folders(root: Path, unreadable: Any) -> Iterator[tuple[str, list[str]]]:
    """Every folder once, with its files' names; links are followed."""
    seen: set[str] = set()
    for folder, inside, names in os.walk(root, onerror=unreadable, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            inside.clear()
            continue
        seen.add(real)
        inside.sort()
        yield folder, names


def _natural(name: str) -> list[str]:
    """A key that sorts step 9 before step 10."""
    return [part.zfill(20) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _told_apart(found: Iterable[RunSummary | Problem]) -> list[RunSummary]:
    """The runs; those of one name get their whole folders as their names."""
    runs = [each for each in found if isinstance(each, RunSummary)]
    counts = Counter(run.name for run in runs)
    return [run if counts[run.name] == 1 else replace(run, name=run.key) for run in runs]


def _same_names(runs: list[RunSummary]) -> list[Problem]:
    """A note for each model that several runs of one training step name: they are told apart by their folders."""
    by_model: dict[tuple[str, Any], list[RunSummary]] = defaultdict(list)
    for run in runs:
        by_model[run.model, run.training.step].append(run)
    return [
        Problem(model, f"{len(same)} runs have this model's name; their folders or dates tell them apart")
        for (model, _), same in by_model.items()
        if len(same) > 1
    ]


def _state(run: RunSummary, task: str) -> Any:
    """Which files a task's samples are read from, in their present state."""
    names = (run.path.name, f"samples_{task}")
    try:
        files = [entry for entry in os.scandir(run.path.parent) if entry.name.startswith(names)]
        stamps = sorted((each.name, each.stat().st_mtime_ns, each.stat().st_size) for each in files)
    except OSError:
        stamps = []
    return (str(run.path), task, tuple(stamps))


def _read_task(run: RunSummary, task: str) -> OpenedTask:
    from xent_metrics.analysis.runs import read_run

    if run.tasks[task].is_group:
        raise ComparisonError(f"{task} is a group, which has no documents of its own: see its tasks")
    if not run.path.is_file():
        raise ComparisonError(f"{run.path} is gone")
    try:
        read = read_run(run.path, tasks=[task])
    except ComparisonError:
        raise
    except Exception as error:  # whatever is in a file of somebody else's
        raise ComparisonError(
            f"{run.path}: the samples of {task} can't be read: {type(error).__name__}: {error}"
        ) from error
    if task not in read.tasks:
        raise ComparisonError(f"{run.path}: task {task} has no configuration, so its samples can't be read")
    return OpenedTask(read, read.tasks[task])
