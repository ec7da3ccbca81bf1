"""A task's configuration, checked before its data or a model load: what lm-eval would drop, ignore or crash on.

`check_task` takes the configuration as lm-eval's loader gives it. What `XentTask` refuses is found by asking it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from xent_metrics.doctor.changes import add_class, one_near, remove_keys, rename_key, set_value
from xent_metrics.doctor.findings import Finding, Severity
from xent_metrics.errors import MetricOptionError, MissingScoreError, PluginError, XentMetricsError
from xent_metrics.hosts.lm_eval.metric_entry import GENERATIVE, LM_EVAL_KEYS, OWN_KEYS, Entry
from xent_metrics.hosts.lm_eval.metric_list import MetricList, check_aggregation, check_options, read_metric_list
from xent_metrics.hosts.lm_eval.requirements import (
    ANY_MODEL_GIVES,
    ENGINES_GIVE,
    can_score,
    require_scores,
)
from xent_metrics.hosts.lm_eval.task import XentTask
from xent_metrics.hosts.lm_eval.task_manager import check_metrics_are_lm_evals
from xent_metrics.hosts.lm_eval.upstream import (
    AGGREGATIONS,
    EMITTED,
    METRICS,
    default_aggregation,
    default_metrics,
    known_keys,
)
from xent_metrics.plugins import list_metrics

__all__ = ["check_task"]

_XENT_TASK = "xent_metrics.hosts.lm_eval.XentTask"
#: Models that give each token's scores, and those that generate nothing.
_TOKEN_MODELS, _ENGINES = {"xent-hf", "xent-torch"}, {"xent-completions", "xent-sglang", "xent-vllm"}
_MUTE = {"xent-torch"}

Mend = Callable[[Any], None]


def check_task(config: Mapping[str, Any], place: str, model: str | None = None) -> list[Finding]:
    """Check a task's configuration.

    Args:
        config: with what it includes, and with its functions.
        place: the YAML or the task, for the findings.
        model: the name of the lm-eval model that will run, as in `--model`; only its metrics are checked against it.
    """
    made_by = config.get("class")
    found = list(_unknown_keys(config, place))
    if made_by is None:
        return [*found, *_stock(config, place), *_cannot_generate(True, config, place, model)]
    if not (isinstance(made_by, type) and issubclass(made_by, XentTask)):
        name = getattr(made_by, "__name__", made_by)
        return [Finding("python-task", place, f"written in Python ({name}); its metrics aren't checked", "note")]
    return [*found, *_ours(config, place, model)]


def _unknown_keys(config: Mapping[str, Any], place: str) -> Iterator[Finding]:
    known = known_keys()
    for key in sorted(config.keys() - known, key=str):
        near = one_near(key, known)
        text = f"lm-eval can't build a task with the key {key!r}.{_meant(near)} Correct or remove it"
        yield Finding("unknown-key", place, text, "error", partial(rename_key, (), key, near) if near else None)


def _entries(config: Mapping[str, Any]) -> list[tuple[int, Any]]:
    listed = config.get("metric_list")
    return list(enumerate(listed)) if isinstance(listed, list) else []


# Tasks of lm-eval's own class.


def _stock(config: Mapping[str, Any], place: str) -> Iterator[Finding]:
    for index, entry in _entries(config):
        if isinstance(entry, Mapping) and "metric" in entry:
            yield from _stock_entry(config, index, entry, place)
        else:
            cure = f"Write `- metric: {entry}`" if isinstance(entry, str) else "Add `metric: name`"
            text = f"an entry of metric_list is `metric: name` with options; got {entry!r}. {cure}"
            yield Finding("broken-entry", place, text, "error")
    yield from _conventions(config, place)


def _stock_entry(config: Mapping[str, Any], index: int, entry: Mapping[str, Any], place: str) -> Iterator[Finding]:
    output_type, has_function = str(config.get("output_type", GENERATIVE)), config.get("process_results") is not None
    name, path = entry["metric"], ("metric_list", index)
    called = name if isinstance(name, str) else getattr(name, "__name__", repr(name))
    # With an aggregation, a task's own `process_results` may emit a value of this name; nothing else can.
    asked = dict(entry) if has_function else {key: value for key, value in entry.items() if key != "aggregation"}
    try:
        check_metrics_are_lm_evals(str(config.get("task")), dict(config) | {"metric_list": [asked]}, is_lm_evals=True)
    except MetricOptionError:
        text = f"{called} is a metric of xent-metrics, which lm-eval's own class of tasks can't compute. "
        text += f"Add `class: !function {_XENT_TASK}`"
        yield Finding("needs-xent-task", place, text, "error", partial(add_class, _XENT_TASK))
        return
    emitted = None if has_function else EMITTED.get(output_type)
    if emitted is not None and name not in emitted:
        yield _dropped(called, sorted(emitted), output_type, path, place)
        return
    if not has_function and isinstance(name, str) and name not in METRICS and not entry.get("hf_evaluate"):
        yield _unregistered(name, path, place)
    if has_function or output_type in EMITTED:
        yield from _refused(
            "ignored-option", place, "warning", partial(check_options, entry, called), _mend_keys(entry, path)
        )
    yield from _aggregation(entry, called, path, place)


def _dropped(called: str, emitted: list[str], output_type: str, path: tuple[Any, ...], place: str) -> Finding:
    near = one_near(called, emitted)
    text = f"lm-eval drops {called} without a word: in {output_type} it computes {', '.join(emitted)}.{_meant(near)}"
    text += " Remove it, or replace it by a metric of xent-metrics in a XentTask"
    mend = partial(set_value, (*path, "metric"), near) if near else None
    return Finding("dropped-metric", place, text, "error", mend)


def _unregistered(name: str, path: tuple[Any, ...], place: str) -> Finding:
    near = one_near(name, METRICS)
    text = f"lm-eval has no metric {name} of its own and looks it up in the evaluate library, over the network.{_meant(near)}"
    text += " If that is meant, say `hf_evaluate: true`"
    mend = partial(set_value, (*path, "metric"), near) if near else None
    return Finding("unregistered-metric", place, text, "warning", mend)


def _aggregation(entry: Mapping[str, Any], called: str, path: tuple[Any, ...], place: str) -> Iterator[Finding]:
    if "aggregation" in entry:
        near = one_near(entry["aggregation"], AGGREGATIONS)
        mend = partial(set_value, (*path, "aggregation"), near) if near else None
        yield from _refused("unknown-aggregation", place, "error", partial(check_aggregation, entry, called), mend)
    elif default_aggregation(called) is None and not entry.get("hf_evaluate"):
        text = (
            f"lm-eval knows no aggregation for {called} and can't build the task. Add `aggregation: mean`, or another"
        )
        yield Finding("missing-aggregation", place, text, "error")


def _refused(
    kind: str, place: str, severity: Severity, check: Callable[[], None], mend: Mend | None
) -> Iterator[Finding]:
    try:
        check()
    except XentMetricsError as error:
        yield Finding(kind, place, str(error), severity, mend)


def _conventions(config: Mapping[str, Any], place: str) -> Iterator[Finding]:
    """What lm-eval's names mean, where xent-metrics means another thing by them."""
    output_type = str(config.get("output_type", GENERATIVE))
    listed = [entry.get("metric") for _, entry in _entries(config) if isinstance(entry, Mapping)]
    names = listed if config.get("metric_list") is not None else default_metrics(output_type)
    per_byte = [name for name in ("bits_per_byte", "byte_perplexity") if name in names]
    has_function = config.get("process_results") is not None
    if output_type == "loglikelihood" and "perplexity" in names and not has_function:
        text = "lm-eval's perplexity is exp of the mean nll per document; that of xent-metrics is per token"
        yield Finding("document-perplexity", place, text, "note")
    if output_type == "loglikelihood_rolling" and has_function and per_byte:
        text = f"the task's process_results counts the bytes of {', '.join(per_byte)}, maybe those of another text than the "
        text += "scored one; bits_per_byte of xent-metrics counts the scored text's, so the two may differ"
        yield Finding("other-bytes", place, text, "note")


# Tasks of ours.


def _ours(config: Mapping[str, Any], place: str, model: str | None) -> Iterator[Finding]:
    """What `read_metric_list` raises: for each entry, and if there is nothing, for all together."""
    if config.get("metric_list") is not None and not isinstance(config["metric_list"], list):
        yield Finding("broken-entry", place, f"metric_list is a list; got {config['metric_list']!r}", "error")
        return
    refused = [finding for index, entry in _entries(config) for finding in _entry_of_ours(config, index, entry, place)]
    yield from refused
    if refused:
        return
    try:
        metrics = read_metric_list(config)
    except XentMetricsError as error:
        yield _raised(error, place)
        return
    yield from _model(metrics, config, place, model)


def _entry_of_ours(config: Mapping[str, Any], index: int, entry: Any, place: str) -> Iterator[Finding]:
    try:
        read_metric_list({**config, "metric_list": [entry]})
    except XentMetricsError as error:
        yield _raised(error, place, _mend_entry(config, index, entry))


def _raised(error: XentMetricsError, place: str, mend: Mend | None = None) -> Finding:
    """A finding for an error: UnknownMetricError is of the kind unknown-metric."""
    words = "BrokenPlugin" if isinstance(error, PluginError) else type(error).__name__.removesuffix("Error")
    kind = "".join(f"-{c.lower()}" if c.isupper() else c for c in words).lstrip("-")
    return Finding(kind, place, str(error), "error", mend)


def _mend_entry(config: Mapping[str, Any], index: int, entry: Any) -> Mend | None:
    """The change of one entry after which `read_metric_list` takes it, if there is exactly one obvious change."""
    if not (isinstance(entry, Mapping) and isinstance(entry.get("metric"), str)):
        return None
    output_type, path = str(config.get("output_type", GENERATIVE)), ("metric_list", index)
    changes: list[Mend] = []
    known = {*EMITTED.get(output_type, METRICS), *list_metrics()}
    if entry["metric"] not in known and (near := one_near(entry["metric"], known)):
        changes.append(partial(set_value, (*path, "metric"), near))
    if near := one_near(entry.get("aggregation"), AGGREGATIONS):
        changes.append(partial(set_value, (*path, "aggregation"), near))
    if entry["metric"] in list_metrics():
        changes.append(partial(remove_keys, path, ("aggregation", "higher_is_better", "ignore_index")))
    if mend_keys := _mend_keys(entry, path):
        changes.append(mend_keys)
    working = [change for change in changes if _is_read(config, index, entry, change)]
    return working[0] if len(working) == 1 else None


def _is_read(config: Mapping[str, Any], index: int, entry: Mapping[str, Any], change: Mend) -> bool:
    tried: dict[str, Any] = {"metric_list": [*[{}] * index, dict(entry)]}
    change(tried)
    try:
        read_metric_list({**config, "metric_list": tried["metric_list"][index:]})
    except XentMetricsError:
        return False
    return True


def _model(metrics: MetricList, config: Mapping[str, Any], place: str, model: str | None) -> Iterator[Finding]:
    """The metrics that the model can't feed."""
    for entry in metrics.ours if model is not None else ():
        try:
            _require_of_model(entry, str(model))
        except MissingScoreError as error:
            text = f"--model {model} can't feed {entry.name}: {error.message}. `--model xent-hf` can"
            if config.get("output_type") == "multiple_choice":
                text += "; over the choices any model can: `over: choices`"
            yield Finding("model-cannot-score", place, text, "error")
    needs_text = metrics.lm_evals is None or bool(metrics.lm_evals) or callable(config.get("process_results"))
    yield from _cannot_generate(needs_text, config, place, model)


def _require_of_model(entry: Entry, model: str) -> None:
    if entry.over == "choices" or model in _TOKEN_MODELS:
        return
    by_token = entry.by is not None and entry.by.grouping is not None
    if can_score(ANY_MODEL_GIVES, entry.metric) and not by_token:
        return
    given = ENGINES_GIVE if model in _ENGINES else ANY_MODEL_GIVES
    require_scores(given, entry.metric)
    if by_token:
        given.require((), row_kinds=frozenset({"token"}), metric=f"{entry.name} by group")


def _cannot_generate(needs_text: bool, config: Mapping[str, Any], place: str, model: str | None) -> Iterator[Finding]:
    if needs_text and model in _MUTE and config.get("output_type", GENERATIVE) == GENERATIVE:
        text = f"--model {model} doesn't generate. Use `--model xent-hf`, or --xent_metrics … --xent_only"
        yield Finding("model-cannot-generate", place, text, "error")


def _meant(near: str | None) -> str:
    return f" Did you mean {near!r}?" if near else ""


def _mend_keys(entry: Mapping[str, Any], path: tuple[Any, ...]) -> Mend | None:
    """Rename a key of an entry of lm-eval's that is misspelt, or remove what lm-eval ignores."""
    known = (*LM_EVAL_KEYS, *(OWN_KEYS if entry["metric"] in list_metrics() else ()))
    unknown = [key for key in entry if key not in known]
    if len(unknown) == 1 and (near := one_near(unknown[0], known)) and near not in entry:
        return partial(rename_key, path, unknown[0], near)
    return partial(remove_keys, path, tuple(unknown)) if unknown and entry["metric"] not in list_metrics() else None
