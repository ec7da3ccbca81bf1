"""A task's `metric_list`: which entries are ours, and every mistake in them, before data or model are touched.

An entry is ours if its name is registered with xent-metrics, also where lm-eval has a metric of that name (perplexity,
byte_perplexity, word_perplexity, bits_per_byte, brier_score), or if it says `over:`. With an `aggregation:`, which ours
bring with them, such a name is lm-eval's own. An entry of ours takes the options of `get_metric`, and

    over: gold | choices    in multiple_choice: the gold continuation (default; not so for brier_score, as in lm-eval), or
                            the distribution over the choices
    name: …                 its name in the results, so that one metric can stand there twice

All others are lm-eval's own. lm-eval drops what it doesn't know of them without a word; here that is an error.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import lm_eval.api.metrics  # noqa: F401  # fills lm-eval's registries
from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY, aggregation_registry, metric_registry

from xent_metrics.errors import (
    InvalidInputError,
    MetricOptionError,
    MissingScoreError,
    UnknownMetricError,
    XentMetricsError,
)
from xent_metrics.hosts.lm_eval.documents import CHOICE, DOCUMENT, can_score, choice_scores, require_scores, tokens_for
from xent_metrics.plugins import get_metric, list_metrics, plugins
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums.metric import TokenMetric

__all__ = ["ADDED", "EMITTED", "OWN_KEYS", "Entry", "build_entry", "read_metric_list"]

#: The config key of metrics that `xent lm-eval --xent_metrics` adds: the task's own list is all lm-eval's then.
ADDED = "xent_metrics"
#: What lm-eval's `process_results` can emit, by output type; all else in a list vanishes there.
EMITTED = {
    "loglikelihood": {"acc", "perplexity"},
    "loglikelihood_rolling": {"bits_per_byte", "byte_perplexity", "word_perplexity"},
    "multiple_choice": {
        "acc", "acc_bytes", "acc_mutual_info", "acc_norm", "brier_score", "exact_match", "f1", "likelihood", "mcc",
    },
}  # fmt: skip
OWN_KEYS = ("metric", "name", "over")
_LM_EVAL_KEYS = ("metric", "aggregation", "higher_is_better", "hf_evaluate")


@dataclass(frozen=True)
class Entry:
    """One of our metrics in a task: its name in the results, the metric, and what it is over (multiple choice alone)."""

    name: str
    metric: TokenMetric
    over: str | None = None


def read_metric_list(config: Mapping[str, Any]) -> tuple[list[Entry], list[dict[str, Any]] | None, list[Any] | None]:
    """Our entries, lm-eval's (None: its defaults), and the whole list as it is to be shown.

    Raises:
        UnknownMetricError, MetricOptionError, MissingScoreError: each says which task and which entry.
    """
    where = f"task {config.get('task', 'without a name')}"
    output_type = str(config.get("output_type", "generate_until"))
    listed, added = config.get("metric_list"), config.get(ADDED)
    if added is not None:
        own = list(added)
        names = {entry.get("name", entry["metric"]) for entry in own}
        if listed is None:
            listed = [{"metric": name} for name in DEFAULT_METRIC_REGISTRY.get(output_type, [])]
        theirs = [entry for entry in listed if not (isinstance(entry, Mapping) and entry.get("metric") in names)]
    elif listed is None:
        return [], None, None
    else:
        own = [entry for entry in listed if _is_ours(entry, output_type)]
        theirs = [entry for entry in listed if not _is_ours(entry, output_type)]
        for entry in theirs:
            _check_lm_evals(entry, output_type, config.get("process_results") is not None, where)
    entries = [build_entry(entry, output_type, where) for entry in own]
    _check_names([*(entry.name for entry in entries), *(_lm_eval_name(entry) for entry in theirs)], where)
    return entries, theirs, [*theirs, *own] if added is not None else listed


def build_entry(entry: Mapping[str, Any], output_type: str, where: str) -> Entry:
    """One of our entries, checked against what a task of `output_type` can give it."""
    metric_name = entry["metric"]
    where = f"{where}, metric {metric_name}"
    if output_type not in EMITTED:
        raise MissingScoreError(
            f"{where}: output_type {output_type} (lm-eval's default where a task names none) gives text, "
            f"not loglikelihoods; our metrics need one of {', '.join(EMITTED)}"
        )
    _refuse(entry, ("aggregation", "higher_is_better"), f"{where} is xent-metrics' own and brings these with it")
    _refuse(entry, ("ignore_index",), f"{where}: no token of a task's text is a target to ignore")
    try:
        metric = get_metric(metric_name, **{key: value for key, value in entry.items() if key not in OWN_KEYS})
    except UnknownMetricError as error:
        _unknown(metric_name, output_type, where, error)
    except MetricOptionError as error:
        raise MetricOptionError(f"{where}: {error}. In a task also: name, over") from error
    except XentMetricsError as error:
        raise type(error)(f"{where}: {error}") from error
    over = _over(entry, output_type, where)
    _check_scores(metric, over, where)
    return Entry(_result_name(entry, where), metric, over)


def _is_ours(entry: Any, output_type: str) -> bool:
    if not isinstance(entry, Mapping) or "over" in entry:
        return isinstance(entry, Mapping)
    name = entry.get("metric")
    return name in list_metrics() and not ("aggregation" in entry and name in EMITTED.get(output_type, ()))


def _over(entry: Mapping[str, Any], output_type: str, where: str) -> str | None:
    over = entry.get("over")
    if output_type == "multiple_choice":
        if over not in (None, "gold", "choices"):
            raise MetricOptionError(f"{where}: over is gold or choices; got {over!r}")
        return over or ("choices" if entry["metric"] in EMITTED[output_type] else "gold")  # as lm-eval's own is
    if over is not None:
        raise MetricOptionError(f"{where}: over belongs to output_type multiple_choice; this task is {output_type}")
    return None


def _check_scores(metric: TokenMetric, over: str | None, where: str) -> None:
    """Whether any model could give what the metric needs; whether this one does is asked when it is there."""
    try:
        if over == "choices":
            CHOICE.require((), row_kinds=metric.row_kinds, metric=metric.name)
            require_scores(_some_choices(metric), metric)
        elif not can_score(DOCUMENT, metric):
            require_scores(tokens_for(metric), metric)
            _check_options(metric)
    except MissingScoreError as error:
        hint = "no lm-eval model gives it"
        if over == "choices" and (can_score(DOCUMENT, metric) or can_score(tokens_for(metric), metric)):
            hint = "over: choices knows of no text; over: gold does"
        elif over == "gold":
            hint += " for the gold continuation; over: choices has the whole distribution"
        raise MissingScoreError(f"{where}: {error} ({hint})") from error
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}: {error}") from error


def _check_options(metric: TokenMetric) -> None:
    """Models score every request alike, whatever the metric would have of them."""
    unmet = sorted(metric.scoring_options().keys() - {"token_bytes"})
    if unmet:
        raise MissingScoreError(
            f"{metric.name} needs tokens scored with `{unmet[0]}`, and models score all of them alike"
        )


def _some_choices(metric: TokenMetric) -> TokenScores:
    """Scores over choices; a metric may be made for so many (class weights), and the task knows only later how many it has."""
    for number in range(2, 26):
        try:
            return choice_scores(metric, [0.0] * number, 0)
        except InvalidInputError:
            continue
    return choice_scores(metric, [0.0] * 26, 0)


def _result_name(entry: Mapping[str, Any], where: str) -> str:
    name = entry.get("name", entry["metric"])
    if not isinstance(name, str) or not re.fullmatch(r"[^\s,]+", name) or name.endswith("_stderr"):
        raise MetricOptionError(f"{where}: name is a word without commas that doesn't end in _stderr; got {name!r}")
    return name


def _check_names(names: Sequence[str], where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise MetricOptionError(f"{where}: {name} stands twice in metric_list; give one of them `name: …`")


def _check_lm_evals(entry: Any, output_type: str, has_function: bool, where: str) -> None:
    """An entry of lm-eval's: a name that will be emitted, an aggregation that exists, and nothing else."""
    if not isinstance(entry, Mapping) or "metric" not in entry:
        raise MetricOptionError(f"{where}: an entry of metric_list is `metric: name` with options; got {entry!r}")
    name = entry["metric"]
    where = f"{where}, metric {_lm_eval_name(entry)}"
    if output_type in EMITTED and not has_function:
        if name not in EMITTED[output_type]:
            _unknown(name, output_type, where)
        _refuse(
            entry, [key for key in entry if key not in _LM_EVAL_KEYS], f"{where} is lm-eval's own, which ignores this"
        )
    elif isinstance(name, str) and name not in metric_registry and not entry.get("hf_evaluate") and not has_function:
        _unknown(name, output_type, where)
    aggregation = entry.get("aggregation")
    if isinstance(aggregation, str) and aggregation not in aggregation_registry:
        raise MetricOptionError(
            f"{where}: unknown aggregation {aggregation!r}.{_near(aggregation, aggregation_registry)} "
            f"lm-eval has: {', '.join(sorted(aggregation_registry))}"
        )


def _lm_eval_name(entry: Any) -> str:
    name = entry["metric"]
    return name if isinstance(name, str) else getattr(name, "__name__", repr(name))


def _refuse(entry: Mapping[str, Any], keys: Iterable[str], why: str) -> None:
    found = [key for key in keys if key in entry]
    if found:
        near = _near(found[0], [*OWN_KEYS, *_LM_EVAL_KEYS]) if found[0] not in _LM_EVAL_KEYS else ""
        raise MetricOptionError(f"{why}: remove {', '.join(found)}.{near}")


def _unknown(name: Any, output_type: str, where: str, error: XentMetricsError | None = None) -> NoReturn:
    if not isinstance(name, str):
        raise UnknownMetricError(
            f"{where}: lm-eval never calls a !function metric in {output_type}; write a TokenMetric"
        )
    if error is None:
        try:
            plugins().metric_class(name)
        except XentMetricsError as own:
            error = own
    theirs = sorted(EMITTED.get(output_type, set(metric_registry)) - set(list_metrics()))
    text = f"{where}: {error}{_near(name, theirs)} lm-eval's own in {output_type}: {', '.join(theirs) or 'none'}."
    raise type(error or UnknownMetricError())(text) from error


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
