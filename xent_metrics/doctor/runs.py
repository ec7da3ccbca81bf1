"""Runs of lm-eval: whether their samples are whole, and whether they can be compared with the first of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xent_metrics.analysis.comparison import same_documents
from xent_metrics.analysis.run_comparison import compare_runs
from xent_metrics.analysis.runs import Run, TaskRun
from xent_metrics.doctor.findings import Finding
from xent_metrics.errors import ComparisonError

__all__ = ["check_runs"]

#: What a task's configuration says of the texts that a model gets, as lm-eval writes it into results.json.
_TEXTS = (
    "dataset_path", "dataset_name", "dataset_kwargs", "training_split", "validation_split", "test_split", "fewshot_split",
    "process_docs", "doc_to_text", "doc_to_target", "doc_to_choice", "use_prompt", "description", "target_delimiter",
    "fewshot_delimiter", "fewshot_config", "gen_prefix", "output_type", "generation_kwargs", "repeats", "filter_list",
)  # fmt: skip
#: What the results say of how a whole run was prompted.
_PROMPTS = ("chat_template_sha", "system_instruction_sha", "fewshot_as_multiturn")
_FEWEST_RESAMPLES = 99  # of the test, whose result isn't used here


def check_runs(runs: Sequence[Run]) -> list[Finding]:
    """Check each run, and each but the first against the first."""
    found = [finding for run in runs for finding in _samples(run)]
    for other in runs[1:]:
        found += _pair(runs[0], other)
    return found


def _samples(run: Run) -> Iterator[Finding]:
    told: set[str] = set()
    for name, task in run.tasks.items():
        place = f"{run.path.parent}, task {name}"
        told.update(task.damaged)
        if not task.samples:
            text = "has no samples, so that it has values but can't be compared. Evaluate with --log_samples"
            yield Finding("no-samples", place, text, "warning")
            told.update(problem for problem in run.problems if problem.startswith(f"task {name}: no samples "))
        elif task.damaged:
            more = f" (and {len(task.damaged) - 1} more)" if len(task.damaged) > 1 else ""
            text = f"{task.damaged[0]}{more}. Evaluate again, or copy the file again"
            yield Finding("damaged-samples", place, text, "error")
    for problem in run.problems:
        if problem not in told:
            yield Finding("unusable-documents", str(run.path.parent), problem, "warning")


def _pair(a: Run, b: Run) -> Iterator[Finding]:
    place = f"{a.path.parent} and {b.path.parent}"
    shared = [name for name in a.tasks if name in b.tasks]
    if not shared:
        text = f"share no task: A has {', '.join(a.tasks)}; B has {', '.join(b.tasks)}. Evaluate both on the same tasks"
        yield Finding("no-shared-task", place, text, "error")
        return
    if alone := sorted(a.tasks.keys() ^ b.tasks.keys()):
        yield Finding("task-in-one-run", place, f"only one of them has {', '.join(alone)}", "note")
    yield from _versions(a, b, place)
    yield from _prompts(a, b, place)
    wrong: set[str] = set()
    for name in shared:
        found = list(_task(name, a, b, place)) or list(_hashes(name, a, b, place))
        yield from found
        if any(each.severity == "error" for each in found):
            wrong.add(name)
    yield from _not_compared(a, b, place, wrong)


def _versions(a: Run, b: Run, place: str) -> Iterator[Finding]:
    first, second = _installed(a), _installed(b)
    differing = [name for name in dict.fromkeys([*first, *second]) if first.get(name) != second.get(name)]
    if differing:
        said = "; ".join(
            f"{name}: {first.get(name, 'none')} in A, {second.get(name, 'none')} in B" for name in differing
        )
        yield Finding("versions-differ", place, f"{said}. A difference of the values may come from this", "note")


def _installed(run: Run) -> dict[str, str]:
    """The version of each package and plugin that made a run, as its results say."""
    ours = _part(run, "xent_metrics")
    found = {
        "lm_eval": run.results.get("lm_eval_version"),
        "transformers": run.results.get("transformers_version"),
        "xent-metrics": ours.get("version"),
    }
    listed = ours.get("plugins")
    for plugin in listed if isinstance(listed, list) else ():
        if isinstance(plugin, dict):
            found[f"plugin {plugin.get('name')}"] = plugin.get("version")
    return {name: str(version) for name, version in found.items() if version is not None}


def _prompts(a: Run, b: Run, place: str) -> Iterator[Finding]:
    for key in _PROMPTS:
        first, second = a.results.get(key), b.results.get(key)
        if first != second:
            text = f"{key} is {first} in A, {second} in B: the models got other texts. Evaluate both with the same one"
            yield Finding("prompts-differ", place, text, "error")


def _task(name: str, a: Run, b: Run, place: str) -> Iterator[Finding]:
    """Why no metric of a task can be compared, or only by values that mean something else."""
    place, first, second = f"{place}, task {name}", a.tasks[name], b.tasks[name]
    if first.version != second.version:
        text = f"the task's version is {first.version} in A, {second.version} in B. Evaluate both with one version"
        yield Finding("task-version", place, text, "error")
    shots = [_part(run, "n-shot").get(name) for run in (a, b)]
    if shots[0] != shots[1]:
        text = f"{shots[0]} few-shot examples in A, {shots[1]} in B. Evaluate both with the same --num_fewshot"
        yield Finding("fewshot", place, text, "error")
    configs = [_part(run, "configs").get(name) for run in (a, b)]
    if keys := _differing(*configs):
        text = (
            f"the task's configurations differ in {', '.join(keys)}: the models got other texts, or were read otherwise. "
            "Evaluate both with one configuration"
        )
        yield Finding("task-config", place, text, "error")
    yield from _documents(first, second, place)
    yield from _options(first, second, place)


def _hashes(name: str, a: Run, b: Run, place: str) -> Iterator[Finding]:
    """A difference that nothing else explains: of the few-shot examples, say, or of the order of the documents."""
    hashes = [_part(run, "task_hashes").get(name) for run in (a, b)]
    if None not in hashes and hashes[0] != hashes[1]:
        text = f"the documents with their prompts have the hash {hashes[0]!s:.12} in A, {hashes[1]!s:.12} in B: other few-shot "
        text += "examples, other data or another order. Evaluate both on the same data with the same seeds"
        yield Finding("task-hash", f"{place}, task {name}", text, "warning")


def _part(run: Run, key: str) -> Mapping[str, Any]:
    part = run.results.get(key)
    return part if isinstance(part, dict) else {}


def _differing(a: Any, b: Any) -> list[str]:
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return []
    return [key for key in _TEXTS if a.get(key) != b.get(key)]


def _documents(a: TaskRun, b: TaskRun, place: str) -> Iterator[Finding]:
    if a.samples and b.samples:
        try:
            same_documents([sample.key for sample in a.samples], [sample.key for sample in b.samples])
        except ComparisonError as error:
            yield Finding("documents-differ", place, str(error), "error")


def _options(a: TaskRun, b: TaskRun, place: str) -> Iterator[Finding]:
    for key in sorted(a.metrics.keys() & b.metrics.keys()):
        if repr(a.metrics[key]) != repr(b.metrics[key]):
            text = f"{key} is {a.metrics[key]!r} in A, {b.metrics[key]!r} in B. Evaluate, or rescore, with the same options"
            yield Finding("metric-options", place, text, "error")


def _not_compared(a: Run, b: Run, place: str, wrong: set[str]) -> Iterator[Finding]:
    """The metrics of the other tasks that `xent compare` refuses, with its reasons, which tokenizers are one of."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in compare_runs(a, b, num_resamples=_FEWEST_RESAMPLES):
        if row.reason is not None and row.task not in wrong:
            reasons.setdefault((row.task, row.reason), []).append(row.metric)
    for (task, reason), metrics in reasons.items():
        yield Finding("not-compared", f"{place}, task {task}", f"{', '.join(metrics)}: {reason}", "warning")
