"""The metrics of a logged task: ours, rebuilt from the task's configuration, and lm-eval's own, read from what it logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from xent_metrics.plugins import get_metric, list_metrics
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.sums.ratio import RatioMetric

__all__ = ["LoggedMean", "configured_metrics", "lm_eval_metric"]

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
    for entry in _our_entries(config):
        options = {key: value for key, value in entry.items() if key not in _TASK_KEYS}
        try:
            metric = get_metric(entry["metric"], **options)
        except Exception as error:  # an option may name a file that exists only on the machine of the run
            problems.append(f"task {task}: {entry['metric']} can't be rebuilt from its configuration: {error}")
            continue
        if config.get("output_type") == "multiple_choice" and _is_over_choices(entry):
            metric.value_unit = metric.value_unit.replace("token", "question")
        built[str(entry.get("name", entry["metric"]))] = metric
    return built


def _our_entries(config: Any) -> Iterator[Mapping[str, Any]]:
    """The entries of `metric_list` that name a registered metric and leave the aggregation to it."""
    entries = config.get("metric_list") if isinstance(config, dict) else None
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and str(entry.get("metric")) in list_metrics() and "aggregation" not in entry:
            yield entry


def _is_over_choices(entry: Mapping[str, Any]) -> bool:
    over = entry.get("over") or ("choices" if entry["metric"] in _OVER_CHOICES else "gold")
    return bool(over == "choices")
