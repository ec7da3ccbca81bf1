"""Evaluations of a Hugging Face Trainer, measured: `measure_evaluations`, for `TrainerMetrics.attach`.

During an evaluation a hook on the base model takes the hidden states of each batch, and the labels are scored under them
by `score_hidden_states`: logits of all positions aren't made for it. A model that makes them for its own loss is asked for
those of the last position alone, if its loss is the mean cross entropy, which the scores give.

Who syncs: `trainer.accelerator`. It gathers each sequence's sums once per batch, as the Trainer gathers losses.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_head import Head
from xent_metrics.hosts.trackers import log_pictures, of_trainer_callback, pictures
from xent_metrics.scoring.scores import TokenScores

__all__ = ["measure_evaluations"]

_INSTEAD = (
    "Pass compute_metrics=metrics and preprocess_logits_for_metrics=metrics.preprocess_logits to the Trainer instead, which "
    "score the model's own logits"
)
#: The relative distance of logits that passes for rounding: in float32, and where anything is in half precision.
_ROUNDING, _HALF_ROUNDING = 1e-4, 3e-2


def measure_evaluations(trainer: Any, metrics: Any) -> None:
    """Let every evaluation of `trainer` report `metrics`, a `TrainerMetrics`; see its `attach`."""
    if not isinstance(trainer, Trainer):
        raise InvalidInputError(f"attach takes a transformers.Trainer, or one of TRL's; got {type(trainer).__name__}")
    if isinstance(getattr(trainer.evaluation_loop, "__self__", None), _Evaluation):
        raise InvalidInputError("TrainerMetrics are attached to this Trainer already; list all metrics in one of them")
    own = trainer.compute_metrics is metrics
    evaluation = _Evaluation(trainer, metrics) if own else _HiddenStateEvaluation(trainer, metrics)
    trainer.add_callback(_Pictures(trainer, evaluation))


class _Evaluation:
    """In place of a Trainer's `evaluation_loop`."""

    def __init__(self, trainer: Any, metrics: Any) -> None:
        self.trainer, self.metrics = trainer, metrics
        self.prefix = "eval"
        self._loop = trainer.evaluation_loop
        trainer.evaluation_loop = self.evaluation_loop

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as before, from no data."""
        self.metrics.reset()
        self.prefix = inspect.signature(self._loop).bind(*args, **kwargs).arguments.get("metric_key_prefix", "eval")
        return self._loop(*args, **kwargs)


class _HiddenStateEvaluation(_Evaluation):
    """In place of a Trainer's `prediction_step`, too: scores the labels of each batch under its hidden states."""

    def __init__(self, trainer: Any, metrics: Any) -> None:
        self.causal = _causal_model(trainer.model)
        super().__init__(trainer, metrics)
        self._step = trainer.prediction_step
        self._keeps_step = getattr(self._step, "__func__", None) is Trainer.prediction_step
        self._checked = False
        self._scores: TokenScores | None = None
        trainer.prediction_step = self.prediction_step

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as before, and add the values to the metrics of its output."""
        self._checked = False
        output = super().evaluation_loop(*args, **kwargs)
        output.metrics.update({f"{self.prefix}_{name}": value for name, value in self.metrics.compute().items()})
        return output

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """Predict as before, and add each sequence's sums; without logits if nothing but the loss needs them."""
        labels = self._labels(inputs)
        if not self._checked:
            self._check_head(model, inputs)
            self._checked = True
        found: list[Tensor] = []
        spared = prediction_loss_only and self._can_spare_logits(inputs)
        given = {**inputs, "labels": None, "logits_to_keep": 1} if spared else inputs
        with self._hidden_states(lambda states: found.append(self._sums(states, labels))):
            output = self._step(model, given, prediction_loss_only, ignore_keys=ignore_keys)
        if not found:
            raise InvalidInputError(f"{type(self.causal).__name__} ran without its base model. {_INSTEAD}")
        self.metrics.add(self.trainer.accelerator.gather_for_metrics(found[-1]))
        return (self._loss(), None, None) if spared else output

    def _labels(self, inputs: Mapping[str, Any]) -> Tensor:
        labels = inputs.get("labels")
        if not isinstance(labels, Tensor) or inputs.get("shift_labels") is not None:
            what = "no labels" if labels is None else "shift_labels, the parts of sequences that this process has"
            raise InvalidInputError(f"expected batches with labels (B, T) of whole sequences; got {what}. {_INSTEAD}")
        return labels

    @contextmanager
    def _hidden_states(self, use: Callable[[Tensor], Any]) -> Iterator[None]:
        """Call `use` with the last hidden states ``(B, T, H)`` of every forward inside, while the weights are in place."""
        handle = self.causal.base_model.register_forward_hook(lambda module, args, output: use(output[0]))
        try:
            yield
        finally:
            handle.remove()

    def _sums(self, states: Tensor, labels: Tensor) -> Tensor:
        if states.shape[:2] != labels.shape:
            raise InvalidInputError(
                f"expected a hidden state for each of the labels {tuple(labels.shape)}; got {tuple(states.shape)}. {_INSTEAD}"
            )
        self._scores = None
        sums: Tensor = self.metrics.sums_by_sequence(states, labels.to(states.device), self._score)
        return sums

    def _score(self, states: Tensor, labels: Tensor, **options: Any) -> TokenScores:
        scores = Head.of(self.causal).score(states, labels, **options)
        self._scores = self._scores or scores
        return scores

    def _can_spare_logits(self, inputs: Mapping[str, Any]) -> bool:
        """True if the batch's logits are made for the model's own loss alone, and that is the mean cross entropy."""
        trainer, causal = self.trainer, self.causal
        return bool(
            self._keeps_step
            and type(trainer).compute_loss is Trainer.compute_loss
            and trainer.compute_metrics is trainer.compute_loss_func is trainer.label_smoother is None
            and trainer.label_names == ["labels"]
            and not trainer.args.use_liger_kernel  # makes no logits either
            and "logits_to_keep" in inspect.signature(causal.forward).parameters
            and getattr(causal, "loss_type", None) == "ForCausalLM"  # of others the Trainer counts the first label, too
            and not getattr(causal.config.get_text_config(), "output_router_logits", False)  # adds a loss of its own
            and self.metrics.shift
        )

    def _loss(self) -> Tensor:
        """The mean cross entropy of the batch, as the Trainer scales it: the mean over processes is that of all tokens."""
        scores, trainer = self._scores, self.trainer
        assert scores is not None
        nats, tokens = scores.nll.sum(), scores.counted.sum()
        if trainer.args.average_tokens_across_devices and trainer.model_accepts_loss_kwargs:
            nats, tokens = nats * trainer.accelerator.num_processes, trainer.accelerator.reduce(tokens)
        return nats / tokens

    def _check_head(self, model: Any, inputs: Mapping[str, Any]) -> None:
        """Raise unless the head as it is read gives the model's own logits, at the first ids of the first batch."""
        ids = inputs.get("input_ids")
        if not isinstance(ids, Tensor):
            raise InvalidInputError(f"expected batches with input_ids; got {', '.join(inputs)}. {_INSTEAD}")
        states: list[Tensor] = []
        with torch.no_grad(), self._hidden_states(states.append):
            logits = model(input_ids=ids[:1, :8].to(self.trainer.args.device)).logits.double()
        head = Head.of(self.causal)
        own = head.logits(states[-1], logits.dtype).to(logits.device)
        exact = {states[-1].dtype, head.weight.dtype} <= {torch.float32, torch.float64}
        bound = _ROUNDING if exact and self.trainer.accelerator.mixed_precision == "no" else _HALF_ROUNDING
        if not (own.shape == logits.shape and (own - logits).norm() <= bound * logits.norm()):
            raise InvalidInputError(
                f"{type(self.causal).__name__} makes logits that aren't those of its output embeddings, its scale and its "
                f"softcap: an adapter on the head, or a step after it. {_INSTEAD}"
            )


class _Pictures(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Sends the metrics' pictures to the trackers, after the Trainer has logged the values there."""

    def __init__(self, trainer: Any, evaluation: _Evaluation) -> None:
        self._trainer, self._evaluation = trainer, evaluation

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        callbacks = self._trainer.callback_handler.callbacks
        trackers = [send for callback in callbacks if (send := of_trainer_callback(callback))]
        if trackers:
            prefix = re.sub(
                "^(eval|test)_", r"\1/", f"{self._evaluation.prefix}_"
            )  # as trackers name the Trainer's values
            log_pictures(trackers, pictures(self._evaluation.metrics.metrics.members(), prefix), state.global_step)


def _causal_model(model: Any) -> Any:
    """The model with its head, without PEFT's wrapper, if its head can be read.

    Raises:
        InvalidInputError: it can't.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    name, config = type(causal).__name__, getattr(causal, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise InvalidInputError(f"{name} is an encoder-decoder, whose labels aren't its inputs. {_INSTEAD}")
    if (
        config is None
        or getattr(causal, "base_model", causal) is causal
        or not hasattr(causal, "get_output_embeddings")
    ):
        raise InvalidInputError(f"{name} has no base model apart from its head. {_INSTEAD}")
    try:
        Head.of(causal)
    except InvalidInputError as error:
        raise InvalidInputError(f"{name}: {error}. {_INSTEAD}") from error
    return causal
