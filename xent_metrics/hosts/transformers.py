"""`TrainerMetrics`: our metrics in the Hugging Face Trainer's `evaluate`, exact over batches and processes.

    metrics = TrainerMetrics(["cross_entropy", {"metric": "bits_per_byte", "token_bytes": tokenizer}])
    trainer = Trainer(…, compute_metrics=metrics, preprocess_logits_for_metrics=metrics.preprocess_logits)
    trainer.evaluate()      # eval_cross_entropy, eval_cross_entropy_stderr, eval_bits_per_byte …

Logits never leave their process. In their place the Trainer gathers each sequence's sums, a few hundred bytes.

Who syncs: the Trainer. It gathers the sequences of all processes on every process, without those that its sampler
repeats. This module calls no collective.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xent_metrics.collection import TokenMetricCollection
from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.config import build_metrics
from xent_metrics.sums import exact_sum
from xent_metrics.wrappers.standard_error import standard_error

__all__ = ["TrainerMetrics"]


class TrainerMetrics:
    """A Trainer's `compute_metrics` and `preprocess_logits_for_metrics`, with or without `batch_eval_metrics`.

    Args:
        metrics: registered names, or dicts with `metric`, its options, and a `name` to report it under.
        shift: pair logits[t] with labels[t + 1], as causal language models do; pass False for masked language models.
        standard_errors: also report ``<name>_stderr``, over sequences.

    >>> metrics = TrainerMetrics(["perplexity"])
    >>> states = metrics.preprocess_logits(torch.zeros(2, 5, 8), torch.ones(2, 5, dtype=torch.long))
    >>> {name: round(value, 6) for name, value in metrics((states, None)).items()}
    {'perplexity': 8.0, 'perplexity_stderr': 0.0}
    """

    def __init__(
        self, metrics: list[str | dict[str, Any]], *, shift: bool = True, standard_errors: bool = True
    ) -> None:
        # The Trainer gives every process all sequences, so nothing is left to sync.
        built = build_metrics(metrics, standard_errors=False, sync_on_compute=False)
        self.metrics = TokenMetricCollection(built)
        self.shift = shift
        self.standard_errors = standard_errors
        self._batches: list[Tensor] = []

    def preprocess_logits(self, logits: Any, labels: Tensor) -> Tensor:
        """Replace logits ``(B, T, V)`` by each sequence's exact sums for all metrics, int64 ``(B, rows, 8)``."""
        if isinstance(logits, tuple | list):  # a model with several outputs returns its logits first
            logits = logits[0]
        if self.shift:
            logits, labels = logits[:, :-1], labels[:, 1:]
        self.metrics.to(logits.device)  # including tables of token bytes and class weights
        return torch.cat([*self.metrics.exact_sums_by_sequence(logits, labels).values()], dim=1)

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        """The values over all sequences; with `batch_eval_metrics`, an empty dict until the last batch."""
        batches = prediction[0] if isinstance(prediction[0], list) else [prediction[0]]
        self._batches += [self._checked(batch) for batch in batches]
        if not compute_result:
            return {}
        states, self._batches = torch.cat(self._batches), []
        return self._values(states)

    def _values(self, states: Tensor) -> dict[str, float]:
        values = {}
        members = self.metrics.to("cpu").members()
        parts = torch.split(states, [len(metric.state) for metric in members.values()], dim=1)
        for (key, metric), own in zip(members.items(), parts, strict=True):
            metric.reset()
            metric.merge_state({name: exact_sum.merge(own) for name in metric.metric_state})
            values[key] = metric.compute().item()
            metric.reset()
            if self.standard_errors:
                values[f"{key}_stderr"] = standard_error(metric, own)
        return values

    def _checked(self, batch: Any) -> Tensor:
        states = torch.as_tensor(batch).cpu()
        rows = sum(len(metric.state) for metric in self.metrics.members().values())
        if states.dtype != torch.int64 or states.shape[1:] != (rows, exact_sum.ROW):
            raise InvalidInputError(
                f"expected each sequence's sums, int64 (B, {rows}, {exact_sum.ROW}); got {tuple(states.shape)} of "
                f"{states.dtype}. Also pass preprocess_logits_for_metrics=metrics.preprocess_logits to the Trainer"
            )
        return states
