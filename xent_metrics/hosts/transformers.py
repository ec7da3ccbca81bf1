"""`TrainerMetrics`: our metrics in the Hugging Face Trainer's `evaluate`, exact over batches and processes.

From hidden states, so that no logits have to be made, with any Trainer and TRL's SFTTrainer:

    metrics = TrainerMetrics(["cross_entropy", {"metric": "bits_per_byte", "token_bytes": tokenizer}])
    trainer = SFTTrainer(…)
    metrics.attach(trainer)
    trainer.evaluate()      # eval_cross_entropy, eval_cross_entropy_stderr, eval_bits_per_byte …

Or from the logits that the Trainer gives to `compute_metrics`:

    trainer = Trainer(…, compute_metrics=metrics, preprocess_logits_for_metrics=metrics.preprocess_logits)

Either way each sequence's sums are gathered, a few hundred bytes, and never logits.

Who syncs: the Trainer, or `attach` by the Trainer's own `accelerator`. All processes get the sequences of all, without
those that the sampler repeats. This module calls no collective.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xent_metrics.collection import TokenMetricCollection
from xent_metrics.errors import InvalidInputError, MissingExtraError
from xent_metrics.hosts.config import build_metrics
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums import exact_sum
from xent_metrics.wrappers.standard_error import standard_error

__all__ = ["TrainerMetrics"]


class TrainerMetrics:
    """Metrics of a Trainer's evaluations: attached to it, or as its `compute_metrics` and `preprocess_logits_for_metrics`.

    Args:
        metrics: registered names, or dicts with `metric`, its options, and a `name` to report it under.
        shift: pair logits[t] with labels[t + 1], as causal language models do; pass False for masked language models.
        standard_errors: also report ``<name>_stderr``, over sequences.

    Attributes:
        metrics: the collection, which holds the sums of the last evaluation.

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
        self._loader: Callable[[], Any] = _nothing

    def attach(self, trainer: Any) -> None:
        """Measure every evaluation of a Trainer: its values are in what `evaluate` returns and logs.

        They are computed of the hidden states before the model's head, unless the trainer has these metrics as its
        `compute_metrics`. A reliability diagram goes to each tracker in `report_to` for each metric that has one, and an
        evaluation that was interrupted leaves nothing to the next.

        Raises:
            InvalidInputError: not a Trainer, it is attached already, or the head of its model can't be read.
            MissingExtraError: transformers is not installed.
        """
        try:
            from xent_metrics.hosts.trainer_evaluation import measure_evaluations
        except ImportError as error:
            raise MissingExtraError(
                "TrainerMetrics.attach needs transformers: pip install 'xent-metrics[lm-eval]'"
            ) from error
        measure_evaluations(trainer, self)

    def reset(self) -> None:
        """Forget the batches of an evaluation that was interrupted.

        An attached Trainer calls it before each evaluation. Under `batch_eval_metrics` alone, a new dataloader shows that
        an evaluation begins; call it yourself where one is used again, with `dataloader_persistent_workers`.
        """
        self._batches, self._loader = [], _nothing

    def preprocess_logits(self, logits: Any, labels: Tensor) -> Tensor:
        """Replace logits ``(B, T, V)`` by each sequence's exact sums for all metrics, int64 ``(B, rows, 8)``."""
        if isinstance(logits, tuple | list):  # a model with several outputs returns its logits first
            logits = logits[0]
        return self.sums_by_sequence(logits, labels)

    def sums_by_sequence(
        self, outputs: Tensor, labels: Tensor, score: Callable[..., TokenScores] | None = None
    ) -> Tensor:
        """Each sequence's exact sums for all metrics, int64 ``(B, rows, 8)``.

        Args:
            outputs: logits ``(B, T, V)``, or hidden states ``(B, T, H)`` for `score`.
            labels: ``(B, T)``, not shifted yet.
            score: scores labels under hidden states, as ``score(hidden_states, labels, **options)``.
        """
        if self.shift:
            outputs, labels = outputs[:, :-1], labels[:, 1:]
        self.metrics.to(outputs.device)  # including tables of token bytes and class weights
        scored = (outputs, labels) if score is None else (partial(score, outputs, labels),)
        return torch.cat([*self.metrics.exact_sums_by_sequence(*scored).values()], dim=1)

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        """The values over all sequences; with `batch_eval_metrics`, an empty dict until the last batch."""
        loader = _running_dataloader()
        if self._loader() is not loader:
            self.reset()
            self._loader = _nothing if loader is None else weakref.ref(loader)
        for batch in prediction[0] if isinstance(prediction[0], list) else [prediction[0]]:
            self.add(batch)
        return self.compute() if compute_result else {}

    def add(self, states: Any) -> None:
        """Add sequences' sums, as `preprocess_logits` gives them; from all processes, on all processes."""
        self._batches.append(self._checked(states))

    def compute(self) -> dict[str, float]:
        """The values over all sequences that were added; the next evaluation starts without them."""
        empty = torch.zeros(0, self._rows, exact_sum.ROW, dtype=torch.int64)
        states = torch.cat([empty, *self._batches])
        self.reset()
        values = {}
        members = self.metrics.to("cpu").members()
        parts = torch.split(states, [len(metric.state) for metric in members.values()], dim=1)
        for (key, metric), own in zip(members.items(), parts, strict=True):
            metric.reset()
            metric.merge_state({name: exact_sum.merge(own) for name in metric.metric_state})
            values[key] = metric.compute().item()
            if self.standard_errors:
                values[f"{key}_stderr"] = standard_error(metric, own)
        return values

    @property
    def _rows(self) -> int:
        return sum(len(metric.state) for metric in self.metrics.members().values())

    def _checked(self, batch: Any) -> Tensor:
        states = torch.as_tensor(batch).cpu()
        if states.dtype != torch.int64 or states.shape[1:] != (self._rows, exact_sum.ROW):
            raise InvalidInputError(
                f"expected each sequence's sums, int64 (B, {self._rows}, {exact_sum.ROW}); got {tuple(states.shape)} of "
                f"{states.dtype}. Also pass preprocess_logits_for_metrics=metrics.preprocess_logits to the Trainer"
            )
        return states


def _nothing() -> None:
    """In place of a weak reference to a dataloader."""


def _running_dataloader() -> Any:
    """The dataloader that is being iterated over under accelerate: another one is another evaluation.

    `GradientState.active_dataloader`, read in accelerate 1.15. If it moves, look for what `DataLoaderShard.begin` sets.
    """
    accelerate = sys.modules.get("accelerate.state")
    return None if accelerate is None else accelerate.GradientState().active_dataloader
