"""Other metrics of a logged run, from its tokens, without the model: `xent rescore`.

A run with `log_tokens=true` and `--log_samples` holds each token's id, nll, confidence, correctness and bytes. They go the way
of a model's results, so that a value has the bits that it would have had in the run. What comes from the logits
(`entropy`, `brier_score` …) isn't in a log, and is refused by name. Over the choices of a question, every metric can be
computed from any model's loglikelihoods.

Who syncs: nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lm_eval.api.task import Task

from xent_metrics.analysis.logged import HOW_TO_LOG_TOKENS
from xent_metrics.analysis.logged_results import LoggedResult, results_in
from xent_metrics.analysis.runs import Run, TaskRun
from xent_metrics.analysis.samples import Sample, samples_at
from xent_metrics.errors import ComparisonError, MetricOptionError, MissingScoreError, XentMetricsError
from xent_metrics.hosts.lm_eval.document_scores import DocumentScores
from xent_metrics.hosts.lm_eval.documents import DocumentSums, DocumentValue, total_standard_error, total_value
from xent_metrics.hosts.lm_eval.metric_entry import GENERATED, GENERATIVE, Entry, build_entry
from xent_metrics.hosts.lm_eval.models.results import ScoredLoglikelihood, ScoredRolling
from xent_metrics.hosts.lm_eval.requested_text import attach_text, requested_text
from xent_metrics.hosts.lm_eval.requirements import ANY_MODEL_GIVES, ENGINES_GIVE, can_score

__all__ = ["RescoredTask", "rescore"]

_CHOICE = "multiple_choice"


@dataclass(frozen=True)
class RescoredTask:
    """A task of a run with other metrics.

    Attributes:
        task: the task as it was run.
        entries: the metrics, and as they were given, `listed`.
        samples: the documents that were scored.
        documents: each document's value of each metric, in the order of `samples` and `entries`.
        skipped: what was wrong with documents that were left out.
    """

    task: TaskRun
    entries: Sequence[Entry]
    listed: Sequence[Mapping[str, Any]]
    samples: Sequence[Sample]
    documents: Sequence[Sequence[DocumentValue]]
    skipped: Sequence[str]

    @cached_property
    def values(self) -> dict[str, tuple[float, float]]:
        """Each metric's value and its standard error over documents, by the metric's name."""
        columns = dict(zip(self.entries, zip(*self.documents, strict=True), strict=True))
        return {
            entry.name: (
                float(total_value(entry.metric, column)),
                total_standard_error(entry.metric, [DocumentSums.of(entry.metric, each.sums) for each in column]),
            )
            for entry, column in columns.items()
        }


def rescore(
    run: Run,
    entries: Sequence[Mapping[str, Any]],
    *,
    tasks: Sequence[str] = (),
    skip_damaged: bool = False,
) -> list[RescoredTask]:
    """Compute metrics of a run from what it logged.

    Args:
        run: the run.
        entries: the metrics, as entries of a `metric_list`; `by`, `doc_to_gold` and `gold: best | all` are refused.
        tasks: the names of the tasks; all by default.
        skip_damaged: leave damaged and missing documents out, in place of refusing the run.

    Raises:
        ComparisonError: no such task, no tokens, or damaged documents.
        MissingScoreError: a metric needs a score that isn't logged.
        UnknownMetricError, MetricOptionError: as in a task.
    """
    if unknown := [name for name in tasks if name not in run.tasks]:
        raise ComparisonError(f"{run.path.parent} has no task {unknown[0]}; it has {', '.join(run.tasks)}")
    if not entries:
        raise MetricOptionError("expected metrics to compute; got none")
    chosen = [run.tasks[name] for name in tasks or run.tasks]
    ready = [_Rescorer(task, run.results["configs"][task.name], entries) for task in chosen]
    return [each.rescored(skip_damaged=skip_damaged) for each in ready]


class _Rescorer:
    """Rescores one task; what is wrong with the metrics is found before any document is read."""

    def __init__(self, task: TaskRun, config: Any, listed: Sequence[Mapping[str, Any]]) -> None:
        self.task, self.listed = task, listed
        self.where = f"task {task.name}"
        config = config if isinstance(config, dict) else {}
        self.output_type = str(config.get("output_type", GENERATIVE))
        self.entries = [build_entry(entry, self.output_type, self.where) for entry in listed]
        names = [entry.name for entry in self.entries]
        if twice := [name for name in names if names.count(name) > 1]:
            raise MetricOptionError(f"{self.where}: {twice[0]} appears twice; give one of them another `name=…`")
        for entry in self.entries:
            self._check(entry)
        given = [entry for entry in config.get("metric_list") or () if isinstance(entry, dict)]
        if any(entry.get("over") == GENERATED for entry in given):
            raise ComparisonError(f"{self.where}: it logged generated texts, which can't be told from gold answers")
        if any("doc_to_gold" in entry for entry in given):
            raise ComparisonError(
                f"{self.where}: its gold answers are those of doc_to_gold, which can't be told from others"
            )

    def _check(self, entry: Entry) -> None:
        """Raise for what a log can't give a metric."""
        where = f"{self.where}, metric {entry.name}"
        if entry.by is not None or entry.doc_to_gold is not None or entry.gold != "first":
            raise MetricOptionError(
                f"{where}: by, doc_to_gold, and gold other than first need the task; evaluate with them"
            )
        metric = entry.metric
        if entry.over == "choices" or can_score(ANY_MODEL_GIVES, metric) or can_score(ENGINES_GIVE, metric):
            return
        logged = {*ENGINES_GIVE.fields(), "prob"}
        missing = ", ".join(f"`{name}`" for name in sorted({*metric.requires, *metric.extra_scores()} - logged))
        raise MissingScoreError(
            f"{where}: it needs {missing or 'other rows'}, which no log has. Of each token nll, confidence, correct, id and "
            f"bytes are logged; evaluate with this metric: xent lm-eval run … --xent_metrics {metric.name}"
        )

    def rescored(self, *, skip_damaged: bool) -> RescoredTask:
        """The task with the metrics' values."""
        task = self.task
        if not task.samples:
            raise ComparisonError(f"{self.where}: no samples; evaluate with --log_samples")
        if self._needs_tokens and not any(_has_tokens(sample) for sample in task.samples):
            raise ComparisonError(f"{self.where}: no tokens in the samples; {HOW_TO_LOG_TOKENS}")
        damaged = list(task.damaged)
        if (missing := task.evaluated - len(task.samples) - len(damaged)) > 0:
            damaged.append(f"{self.where}: {missing} of {task.evaluated} documents are missing")
        found = list(self._documents(damaged))  # by place: the documents themselves are read again when they are needed
        if damaged and not skip_damaged:
            shown = "\n".join(f"  {each}" for each in damaged[:10])
            raise ComparisonError(
                f"{self.where}: {len(damaged)} problems with its samples; --skip-damaged scores the other documents\n{shown}"
            )
        if not found:
            raise ComparisonError(f"{self.where}: no document can be read")
        places, documents = zip(*found, strict=True)
        samples = task.samples if len(places) == len(task.samples) else list(samples_at(task.samples, places))
        return RescoredTask(task, self.entries, self.listed, samples, documents, damaged)

    @property
    def _needs_tokens(self) -> bool:
        return any(entry.over != "choices" for entry in self.entries)

    def _documents(self, damaged: list[str]) -> Iterator[tuple[int, list[DocumentValue]]]:
        """The places of the documents with their values; what is wrong with the others is added to `damaged`."""
        for place, sample in enumerate(self.task.samples):
            where = f"{self.where}: document {sample.raw.get('doc_id')}"
            try:
                document = self._document(sample)
            except XentMetricsError as error:
                raise type(error)(f"{where}: {error}") from error
            except ValueError as error:
                damaged.append(f"{where}: {error}")
                continue
            yield place, [self._value(entry, document) for entry in self.entries]

    def _value(self, entry: Entry, document: DocumentScores) -> DocumentValue:
        try:
            return DocumentValue.of(entry.metric, document.scores_for(entry.metric, entry.over))
        except XentMetricsError as error:
            raise type(error)(f"{self.where}, metric {entry.name}: {error}") from error

    def _document(self, sample: Sample) -> DocumentScores:
        """A document's scores.

        Raises:
            ValueError: it is damaged.
            ComparisonError: the log doesn't say which answer is the gold one.
        """
        results = results_in(sample.logged)
        if not results:
            raise ValueError("no loglikelihood was logged")
        gold = gold_choice(sample.raw, results) if self.output_type == _CHOICE else 0
        loglikelihoods = [result.loglikelihood for result in results] if self.output_type == _CHOICE else []
        answer = self._answer(results[gold])
        return DocumentScores(answer, Task.count_bytes, Task.count_words, loglikelihoods, gold)

    def _answer(self, result: LoggedResult) -> Any:
        """The result as the model gave it, with its text."""
        is_rolling = len(result.arguments) == 1
        text = requested_text("loglikelihood_rolling" if is_rolling else "loglikelihood", result.arguments)
        if not self._needs_tokens:
            return attach_text(result.loglikelihood if is_rolling else (result.loglikelihood, False), text)
        if result.logged is None:
            raise ValueError("it has no tokens")
        scores = result.scores()
        return attach_text(ScoredRolling(scores) if is_rolling else ScoredLoglikelihood(scores), text)


def _has_tokens(sample: Sample) -> bool:
    try:
        return any(result.logged is not None for result in results_in(sample.logged))
    except ValueError:
        return False


def gold_choice(raw: Mapping[str, Any], results: Sequence[LoggedResult]) -> int:
    """The index of the gold choice, which lm-eval logs as a string: an index, or the text of a choice.

    Raises:
        ComparisonError: it may be several, or the choices are contexts.
    """
    target = str(raw.get("target", "")).strip()
    choices = [result.arguments[-1].strip() for result in results]
    found = {index for index, choice in enumerate(choices) if choice == target}
    if target.isdecimal() and int(target) < len(choices):
        found.add(int(target))
    if len({result.arguments[0] for result in results}) > 1:
        raise ComparisonError("its choices have different contexts, so that the log doesn't say which is the gold one")
    if len(found) != 1:
        raise ComparisonError(f"the log says {target!r} of the choices {choices}, which doesn't tell the gold one")
    return found.pop()
