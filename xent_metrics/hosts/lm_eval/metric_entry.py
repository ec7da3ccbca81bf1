"""One of our metrics in a task's `metric_list`: its options, what it is computed over, and whether a model can score it.

All of it is checked when the task loads, before its data or the model. Which model will run isn't known yet, so a metric is
refused here only if no lm-eval model can give its scores.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from xent_metrics.errors import (
    InvalidInputError,
    MetricOptionError,
    MissingScoreError,
    UnknownMetricError,
    XentMetricsError,
)
from xent_metrics.hosts.lm_eval.document_scores import choice_scores
from xent_metrics.hosts.lm_eval.metric_groups import By, parse_by
from xent_metrics.hosts.lm_eval.requirements import (
    ANSWERS_GIVE,
    ANY_MODEL_GIVES,
    CHOICES_GIVE,
    can_score,
    require_scores,
    token_model_gives,
    unmet_options,
)
from xent_metrics.hosts.lm_eval.upstream import EMITTED, METRICS
from xent_metrics.plugins import get_metric, list_metrics, plugins
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.wrappers.grouped import Grouped

__all__ = [
    "GENERATED",
    "GENERATIVE",
    "LM_EVAL_KEYS",
    "OWN_KEYS",
    "Entry",
    "build_entry",
    "did_you_mean",
    "raise_unknown",
    "refuse_keys",
]

#: The output type of tasks whose gold answers are scored beside the generation.
GENERATIVE = "generate_until"
#: `over` of an entry that is computed from the generated text itself.
GENERATED = "generated"
#: The keys of an entry that are no options of the metric, in an entry of ours and in one of lm-eval's.
OWN_KEYS = ("metric", "name", "over", "by", "gold", "doc_to_gold", "correct")
LM_EVAL_KEYS = ("metric", "aggregation", "higher_is_better", "hf_evaluate")

_MOST_CHOICES = 26


@dataclass(frozen=True)
class Entry:
    """One of our metrics in a task.

    Attributes:
        name: its name in the results.
        metric: the metric.
        over: "gold" or "choices" in multiple choice, "gold" or "generated" in generation; None otherwise.
        gold: which of several gold answers of a generation: "first", "best" or "all".
        doc_to_gold: the field, template or function of the gold answer, if it isn't the task's `doc_to_target`.
        by: the groups in which it is shown, too.
        correct: lm-eval's metric that says whether a generated answer is right; the answer is then one row.
    """

    name: str
    metric: TokenMetric
    over: str | None = None
    gold: str = "first"
    doc_to_gold: Any = None
    by: By | None = None
    correct: str | None = None

    @property
    def unit(self) -> str:
        """The value's unit: over the choices and over answers, a question is what a token is elsewhere."""
        of_questions = self.over == "choices" or self.correct is not None
        return self.metric.value_unit.replace("token", "question") if of_questions else self.metric.value_unit

    @property
    def meaning(self) -> str:
        """What is measured, in words. Tasks of a group whose entries mean the same have a value together."""
        if self.over == "choices":
            return f"{self.metric.described()} over the choices"
        if self.over == GENERATED:
            return f"{self.metric.described()} of generated {f'answers, right by {self.correct}' if self.correct else 'text'}"
        return self.metric.described() + ("" if self.gold == "first" else f" of the {self.gold} gold")


def build_entry(entry: Mapping[str, Any], output_type: str, where: str) -> Entry:
    """Build an entry of ours, and check it against what a task of `output_type` can give it.

    Args:
        entry: as the YAML has it.
        output_type: the task's.
        where: the task, for error messages.

    Raises:
        UnknownMetricError, MetricOptionError, MissingScoreError, InvalidInputError: each names the task and the entry.
    """
    where = f"{where}, metric {entry['metric']}"
    refuse_keys(
        entry, ("aggregation", "higher_is_better"), f"{where}: a metric of xent-metrics knows how it is aggregated"
    )
    refuse_keys(entry, ("ignore_index",), f"{where}: in a task every token of the text is a target")
    metric = _build_metric(entry, output_type, where)
    over = _over(entry, output_type, where)
    gold = _gold(entry, output_type, where)
    _check_scores(metric, over, output_type, where)
    by = _by(entry, metric, over, where)
    correct = _correct(entry, metric, over, where)
    return Entry(_result_name(entry, where), metric, over, gold, entry.get("doc_to_gold"), by, correct)


def _build_metric(entry: Mapping[str, Any], output_type: str, where: str) -> TokenMetric:
    try:
        return get_metric(entry["metric"], **{key: value for key, value in entry.items() if key not in OWN_KEYS})
    except UnknownMetricError as error:
        raise_unknown(entry["metric"], output_type, where, error)
    except MetricOptionError as error:
        raise MetricOptionError(f"{where}: {error}. In a task also: {', '.join(OWN_KEYS[1:])}") from error
    except XentMetricsError as error:
        raise type(error)(f"{where}: {error}") from error


def _over(entry: Mapping[str, Any], output_type: str, where: str) -> str | None:
    over = entry.get("over")
    if output_type == GENERATIVE:
        if over not in (None, "gold", GENERATED):
            raise MetricOptionError(f"{where}: over is gold or generated in output_type {GENERATIVE}; got {over!r}")
        return over or "gold"
    if output_type != "multiple_choice":
        if over is not None:
            raise MetricOptionError(f"{where}: over belongs to output_type multiple_choice; this task is {output_type}")
        return None
    if over not in (None, "gold", "choices"):
        raise MetricOptionError(f"{where}: over is gold or choices; got {over!r}")
    # A metric that lm-eval also has, brier_score, is over the choices there.
    return over or ("choices" if entry["metric"] in EMITTED[output_type] else "gold")


def _by(entry: Mapping[str, Any], metric: TokenMetric, over: str | None, where: str) -> By | None:
    if "by" not in entry:
        return None
    by = parse_by(entry["by"], where)
    if by.grouping is not None:
        try:
            scores = CHOICES_GIVE if over == "choices" else token_model_gives(metric)
            scores.require((), row_kinds=frozenset({"token"}), metric=f"{metric.name} by group")
            require_scores(scores, Grouped(metric, by=by.grouping))
        except XentMetricsError as error:
            raise type(error)(f"{where}: {error}") from error
    return by


def _correct(entry: Mapping[str, Any], metric: TokenMetric, over: str | None, where: str) -> str | None:
    """The metric of lm-eval that says which generated answers are right: greedy decoding makes every token the likeliest."""
    found, needed = entry.get("correct"), over == GENERATED and "correct" in metric.requires
    if needed and not isinstance(found, str):
        raise MetricOptionError(
            f"{where}: over: generated needs `correct: exact_match`, the name of lm-eval's metric in this list that says "
            f"whether an answer is right; got {found!r}"
        )
    if "correct" in entry and not needed:
        raise MetricOptionError(f"{where}: correct belongs to metrics of right answers with over: generated; remove it")
    if found is not None and "by" in entry:
        raise MetricOptionError(f"{where}: by and correct don't go together; remove one of them")
    if needed:
        try:
            require_scores(ANSWERS_GIVE, metric)
        except MissingScoreError as error:
            raise MissingScoreError(
                f"{where}: {error} (of an answer, only its confidence and whether it is right are known)"
            ) from error
    return found


def _gold(entry: Mapping[str, Any], output_type: str, where: str) -> str:
    given = [key for key in ("gold", "doc_to_gold") if key in entry]
    if given and entry.get("over") == GENERATED:
        raise MetricOptionError(f"{where}: {given[0]} belongs to over: gold; remove it")
    if given and output_type != GENERATIVE:
        raise MetricOptionError(f"{where}: {given[0]} belongs to output_type {GENERATIVE}; this task is {output_type}")
    gold = entry.get("gold", "first")
    if gold not in ("first", "best", "all"):
        raise MetricOptionError(f"{where}: gold is first, best or all; got {gold!r}")
    return str(gold)


def _check_scores(metric: TokenMetric, over: str | None, output_type: str, where: str) -> None:
    """Raise unless some lm-eval model can give what the metric needs."""
    try:
        if over == "choices":
            CHOICES_GIVE.require((), row_kinds=metric.row_kinds, metric=metric.name)
            require_scores(_some_choices(metric), metric)
        elif not can_score(ANY_MODEL_GIVES, metric):
            require_scores(token_model_gives(metric), metric)
            _check_options(metric)
    except MissingScoreError as error:
        raise MissingScoreError(f"{where}: {error} ({_what_would_work(metric, over, output_type)})") from error
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}: {error}") from error


def _what_would_work(metric: TokenMetric, over: str | None, output_type: str) -> str:
    if over == "choices" and (can_score(ANY_MODEL_GIVES, metric) or can_score(token_model_gives(metric), metric)):
        return "over: choices has no text; over: gold has it"
    if output_type == "multiple_choice":
        return "no lm-eval model gives it for the gold continuation; over: choices has the whole distribution"
    return "no lm-eval model gives it"


def _check_options(metric: TokenMetric) -> None:
    if unmet := unmet_options(metric):
        raise MissingScoreError(
            f"{metric.name} needs tokens scored with `{unmet[0]}`, but models score the tokens of all metrics alike"
        )


def _some_choices(metric: TokenMetric) -> TokenScores:
    """Scores over as many choices as the metric takes: class weights fix a number, which the task learns from its data."""
    for number in range(2, _MOST_CHOICES):
        try:
            return choice_scores(metric, [0.0] * number, 0)
        except InvalidInputError:
            continue
    return choice_scores(metric, [0.0] * _MOST_CHOICES, 0)


def _result_name(entry: Mapping[str, Any], where: str) -> str:
    name = entry.get("name", entry["metric"])
    if not isinstance(name, str) or not re.fullmatch(r"[^\s,]+", name) or name.endswith("_stderr"):
        raise MetricOptionError(
            f"{where}: name is a word without spaces and commas that doesn't end in _stderr; got {name!r}"
        )
    return name


def refuse_keys(entry: Mapping[str, Any], keys: Iterable[str], why: str) -> None:
    """Raise `MetricOptionError` if the entry has any of the keys."""
    found = [key for key in keys if key in entry]
    if found:
        near = did_you_mean(found[0], [*OWN_KEYS, *LM_EVAL_KEYS]) if found[0] not in LM_EVAL_KEYS else ""
        raise MetricOptionError(f"{why}: remove {', '.join(found)}{near and '.' + near}")


def raise_unknown(name: Any, output_type: str, where: str, error: XentMetricsError | None = None) -> NoReturn:
    """Raise `UnknownMetricError`, or the error that set the metric's plugin aside, with near names of ours and lm-eval's."""
    if not isinstance(name, str):
        raise UnknownMetricError(
            f"{where}: lm-eval never calls a !function metric in {output_type}; write a TokenMetric instead"
        )
    if error is None:
        try:
            plugins().metric_class(name)
        except XentMetricsError as own:
            error = own
    theirs = sorted(EMITTED.get(output_type, set(METRICS)) - set(list_metrics()))
    near = did_you_mean(name, theirs)
    said = error.message if error is not None else f"unknown metric {name!r}"
    text = f"{where}: {said}.{near} lm-eval's own in {output_type}: {', '.join(theirs) or 'none'}"
    raise type(error or UnknownMetricError())(text) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the known name nearest to `name`, if any is near.

    >>> did_you_mean("acc_nrom", ["acc", "acc_norm"])
    " Did you mean 'acc_norm'?"
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
