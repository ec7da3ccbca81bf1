"""Reads a task's `metric_list`: which entries are ours, which are lm-eval's, and every mistake in either.

An entry is ours if xent-metrics has a metric of that name or if it says `over:`. lm-eval has some of these names too:
perplexity, byte_perplexity, word_perplexity, bits_per_byte, brier_score. With an `aggregation:`, which our metrics don't
take, such a name means lm-eval's metric. Our entries take the options of `get_metric`, and

    over: gold | choices    multiple choice: the gold continuation (default), or the distribution over the choices
                            (default for brier_score, as in lm-eval)
    over: gold | generated  generation: the gold answer (default), or what the model generated (generated_answers.py)
    correct: …              with over: generated, lm-eval's metric that says whether the answer is right
    by: …                   the metric by field, position or frequency, too (metric_groups.py)
    gold: first | best | all    generation only: which of several gold answers (gold_answers.py)
    doc_to_gold: …          generation only: the gold answer, if it isn't the task's doc_to_target
    name: …                 the name in the results, so that one metric can appear twice

All other entries are lm-eval's. lm-eval silently drops those that it can't compute; here they are errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from xent_metrics.errors import MetricOptionError, MissingScoreError
from xent_metrics.hosts.lm_eval.extra_scores import extra_scores_of
from xent_metrics.hosts.lm_eval.metric_entry import (
    GENERATED,
    GENERATIVE,
    LM_EVAL_KEYS,
    Entry,
    build_entry,
    did_you_mean,
    raise_unknown,
    refuse_keys,
)
from xent_metrics.hosts.lm_eval.upstream import AGGREGATIONS, EMITTED, METRICS, default_metrics
from xent_metrics.plugins import list_metrics

__all__ = ["ADDED", "ONLY", "MetricList", "check_aggregation", "check_options", "read_metric_list"]

#: The configuration key of the metrics that `xent lm-eval --xent_metrics` adds to a task of lm-eval's own.
ADDED = "xent_metrics"
#: The configuration key by which `xent lm-eval --xent_only` leaves lm-eval's own metrics out.
ONLY = "xent_only"


class MetricList(NamedTuple):
    """A task's `metric_list`, sorted.

    Attributes:
        ours: our metrics.
        lm_evals: the entries of lm-eval's own; None stands for its defaults.
        shown: the whole list, as results.json shows it.
    """

    ours: list[Entry]
    lm_evals: list[Any] | None
    shown: list[Any] | None


def read_metric_list(config: Mapping[str, Any]) -> MetricList:
    """Read and check the metrics of a task's configuration.

    Raises:
        UnknownMetricError, MetricOptionError, MissingScoreError: each names the task and the entry.
    """
    where = f"task {config.get('task', 'without a name')}"
    output_type = str(config.get("output_type", GENERATIVE))
    listed, added = config.get("metric_list"), config.get(ADDED)
    if added is not None:
        lm_evals = _besides(list(added), listed, output_type)
        shown = [*lm_evals, *added]
    elif listed is None:
        added, lm_evals, shown = [], None, None
    else:
        added = [entry for entry in listed if _is_ours(entry, output_type)]
        lm_evals, shown = [entry for entry in listed if not _is_ours(entry, output_type)], listed
        for entry in lm_evals:
            _check_lm_evals(entry, output_type, config.get("process_results") is not None, where)
    if config.get(ONLY):
        lm_evals, shown = [], added
        if not added:
            raise MetricOptionError(f"{where}: --xent_only leaves it without a metric; add some by --xent_metrics")
    ours = [build_entry(entry, output_type, where) for entry in added]
    _check_names([*(entry.name for entry in ours), *(_lm_evals_name(entry) for entry in lm_evals or ())], where)
    if output_type == GENERATIVE:
        for entry in ours:
            check = _check_generated if entry.over == GENERATED else _check_gold
            check(entry, {**config, "metric_list": lm_evals}, f"{where}, metric {entry.name}")
    _check_extra_scores(ours, where)
    return MetricList(ours, lm_evals, shown)


def _besides(added: list[Any], listed: Sequence[Any] | None, output_type: str) -> list[Any]:
    """The task's list, which is all lm-eval's, without the metrics that the added ones replace."""
    names = {entry.get("name", entry["metric"]) for entry in added}
    if listed is None:
        listed = [{"metric": name} for name in default_metrics(output_type)]
    return [entry for entry in listed if not (isinstance(entry, Mapping) and entry.get("metric") in names)]


def _is_ours(entry: Any, output_type: str) -> bool:
    if not isinstance(entry, Mapping) or "over" in entry:
        return isinstance(entry, Mapping)
    name = entry.get("metric")
    return name in list_metrics() and not ("aggregation" in entry and name in EMITTED.get(output_type, ()))


def _check_names(names: Sequence[str], where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise MetricOptionError(f"{where}: {name} appears twice in metric_list; give one of them another `name: …`")


def _check_gold(entry: Entry, config: Mapping[str, Any], where: str) -> None:
    """Raise unless the task has a gold answer, as far as its configuration says."""
    target, prompt = config.get("doc_to_target"), config.get("use_prompt")
    if entry.doc_to_gold is not None:
        if prompt is not None:
            raise MetricOptionError(
                f"{where}: the gold answer of a task with use_prompt is the prompt's; remove doc_to_gold"
            )
        return
    name_it = "name the field or the template of the answer: `doc_to_gold: …`"
    if config.get("unsafe_code"):
        raise MissingScoreError(
            f"{where}: the task runs code (unsafe_code), and its doc_to_target may be a test of the answer instead of the "
            f"answer; {name_it}"
        )
    chosen = isinstance(target, int) and config.get("doc_to_choice") is not None
    if prompt is None and not chosen and (target is None or isinstance(target, int) or not str(target).strip()):
        raise MissingScoreError(
            f"{where}: the task has no gold answer (doc_to_target: {target!r}). Leave the metric out, or {name_it}"
        )


def _check_generated(entry: Entry, config: Mapping[str, Any], where: str) -> None:
    """Raise unless lm-eval computes the metric that says which answers are right, of one answer per document."""
    if entry.correct is None:
        return
    listed = config["metric_list"]
    known = default_metrics(GENERATIVE) if listed is None else [_lm_evals_name(each) for each in listed]
    if entry.correct not in known and not callable(config.get("process_results")):
        raise MetricOptionError(
            f"{where}: correct: {entry.correct} is none of lm-eval's metrics in this list: {', '.join(known) or 'none'}."
            f"{did_you_mean(entry.correct, known)}"
        )
    if (repeats := config.get("repeats") or 1) != 1:
        raise MetricOptionError(
            f"{where}: correct needs one answer per document, and repeats is {repeats}; leave the metric out, or set repeats: 1"
        )


def _check_extra_scores(entries: Sequence[Entry], where: str) -> None:
    """Raise if two metrics over the same rows mean different extra scores by one name."""
    for over in {entry.over for entry in entries}:
        try:
            extra_scores_of({entry.name: entry.metric for entry in entries if entry.over == over})
        except MetricOptionError as error:
            raise MetricOptionError(f"{where}: {error}") from error


def check_options(entry: Mapping[str, Any], where: str) -> None:
    """Raise if an entry of lm-eval's own has keys that lm-eval reads only where it calls the metric on a generation.

    Args:
        entry: the entry.
        where: the task and the metric, for error messages.
    """
    ignored = [key for key in entry if key not in LM_EVAL_KEYS]
    refuse_keys(entry, ignored, f"{where}: lm-eval ignores options of this metric in such a task")


def check_aggregation(entry: Mapping[str, Any], where: str) -> None:
    """Raise unless lm-eval knows the aggregation of an entry of its own."""
    aggregation = entry.get("aggregation")
    if isinstance(aggregation, str) and aggregation not in AGGREGATIONS:
        raise MetricOptionError(
            f"{where}: unknown aggregation {aggregation!r}.{did_you_mean(aggregation, AGGREGATIONS)} "
            f"lm-eval has: {', '.join(sorted(AGGREGATIONS))}"
        )


def _check_lm_evals(entry: Any, output_type: str, has_function: bool, where: str) -> None:
    """Raise unless lm-eval would emit the metric, knows its aggregation and reads all of its keys.

    `has_function` says that the task has a `process_results` of its own, which may emit any name.
    """
    if not isinstance(entry, Mapping) or "metric" not in entry:
        raise MetricOptionError(f"{where}: an entry of metric_list is `metric: name` with options; got {entry!r}")
    name = entry["metric"]
    where = f"{where}, metric {_lm_evals_name(entry)}"
    if output_type in EMITTED and not has_function:
        if name not in EMITTED[output_type]:
            raise_unknown(name, output_type, where)
        check_options(entry, where)
    elif isinstance(name, str) and name not in METRICS and not entry.get("hf_evaluate") and not has_function:
        raise_unknown(name, output_type, where)
    check_aggregation(entry, where)


def _lm_evals_name(entry: Any) -> str:
    name = entry["metric"]
    return name if isinstance(name, str) else getattr(name, "__name__", repr(name))
