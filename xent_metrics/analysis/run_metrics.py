"""The metrics of a logged task: ours, rebuilt from the task's configuration, and lm-eval's own, read from what it logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from xent_metrics.plugins import get_metric, list_metrics
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.sums.ratio import RatioMetric

__all__ = ["LoggedMean", "configured_metrics", "lm_eval_metric", "over_choices", "unregistered_metrics"]

#: Keys of a metric_list entry that belong to the task, not to the metric.
_TASK_KEYS = ("metric", "name", "over", "by", "gold", "doc_to_gold", "aggregation", "higher_is_better", "hf_evaluate")
#: Metrics that a multiple-choice task computes over the choices unless its list says otherwise.
_OVER_CHOICES = ("brier_score",)
#: Metrics for which lm-eval logs a pair (loglikelihood, length) per document.
_WEIGHTED = ("bits_per_byte", "byte_perplexity", "word_perplexity")


class LoggedMean(RatioMetric):
    """Mean = Σ value / documents, of a metric of lm-eval's own with one logged number per document, such as `acc`.

    >>> import torch
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
        """As lm-eval says."""
        return self._direction

    def sum_names(self) -> tuple[str, str]:
        return "values", "documents"

    def per_token(self, scores: TokenScores) -> Tensor:
        return -scores.nll  # the value is given as a loglikelihood


def lm_eval_metric(key: str, higher_is_better: Any) -> TokenMetric:
    """The metric that may reproduce one of lm-eval's own: ours for its weighted perplexities, otherwise the mean."""
    name = key.partition(",")[0]
    if name in _WEIGHTED:
        return get_metric(name)
    return LoggedMean(key, higher_is_better=higher_is_better if isinstance(higher_is_better, bool) else None)


def configured_metrics(config: Any, task: str, problems: list[str]) -> dict[str, TokenMetric]:
    """Our metrics of a task, rebuilt from its configuration; those that can't be are added to `problems`."""
    built: dict[str, TokenMetric] = {}
    problems += [f"task {task}: {problem}" for problem in _not_read(config)]
    of_questions = over_choices(config)
    for entry in _entries_without_aggregation(config):
        if entry["metric"] not in list_metrics():
            continue
        options = {key: value for key, value in entry.items() if key not in _TASK_KEYS}
        try:
            metric = get_metric(entry["metric"], **options)
        except Exception as error:  # an option may name a file that exists only on the machine of the run
            problems.append(f"task {task}: {entry['metric']} can't be rebuilt from its configuration: {error}")
            continue
        name = _name(entry)
        if name in of_questions:
            metric.value_unit = metric.value_unit.replace("token", "question")
        built[name] = metric
    return built


def over_choices(config: Any) -> set[str]:
    """The names in the results of the metrics whose rows are questions: over the choices of a multiple-choice task."""
    entries = list(_entries_without_aggregation(config))
    return {
        _name(entry) for entry in entries if config.get("output_type") == "multiple_choice" and _is_over_choices(entry)
    }


def unregistered_metrics(config: Any) -> dict[str, str]:
    """The names of metrics that no loaded plugin registers, by their names in the results; some may be lm-eval's own."""
    named = {_name(entry): entry["metric"] for entry in _entries_without_aggregation(config)}
    return {name: metric for name, metric in named.items() if metric not in list_metrics()}


def _entries_without_aggregation(config: Any) -> Iterator[Mapping[str, Any]]:
    """The entries of `metric_list` that name a metric and leave the aggregation to it, as ours do."""
    entries = config.get("metric_list") if isinstance(config, dict) else None
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("metric"), str) and "aggregation" not in entry:
            yield entry


def _not_read(config: Any) -> Iterator[str]:
    """What is no list of metrics where one belongs."""
    if not isinstance(config, dict):
        yield f"its configuration is of type {type(config).__name__}, so that its metrics can't be rebuilt"
        return
    entries = config.get("metric_list") or []
    if not isinstance(entries, list):
        yield f"its metric_list is of type {type(entries).__name__}, so that its metrics can't be rebuilt"
    elif others := [
        entry for entry in entries if not (isinstance(entry, dict) and isinstance(entry.get("metric"), str))
    ]:
        yield f"an entry of its metric_list names no metric: {others[0]!r:.60}"


def _name(entry: Mapping[str, Any]) -> str:
    """The name in the results."""
    return str(entry.get("name", entry["metric"]))


def _is_over_choices(entry: Mapping[str, Any]) -> bool:
    over = entry.get("over") or ("choices" if entry["metric"] in _OVER_CHOICES else "gold")
    return bool(over == "choices")
