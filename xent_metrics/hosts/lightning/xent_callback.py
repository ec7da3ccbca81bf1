"""XentCallback: metrics by name for any LightningModule, exact over batches, ranks and checkpoints.

A stage's sums start at zero with its epoch and are summed over all ranks at its end. Checkpoints written during a
training epoch contain the sums so far, and a resumed epoch continues from them. An interrupted validation starts again
at its first batch, as Lightning does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xent_metrics.errors import MetricOptionError
from xent_metrics.hosts.config import build_metrics, named_object
from xent_metrics.hosts.lightning.callback import Callback, log_all, trackers_of
from xent_metrics.hosts.lightning.duplicates import without_duplicates
from xent_metrics.hosts.lightning.stage import StageMetrics
from xent_metrics.hosts.lightning.step_output import read
from xent_metrics.hosts.lightning.upstream import active_loaders
from xent_metrics.hosts.trackers import log_pictures, pictures
from xent_metrics.sums.metric import NanPolicy

__all__ = ["XentCallback"]

_STAGES = ("train", "val", "test")


class XentCallback(Callback):
    """Log metrics and their standard errors at the end of each epoch, as ``val/cross_entropy`` and ``…_stderr``.

    Args:
        metrics: registered names, or dicts with `metric`, its options, and a `name` to log it under. A string given as
            `token_bytes` is the import path of a tokenizer, a table, or a function without arguments that returns one.
        stages: the stages to evaluate: "train", "val", "test".
        adapter: a function ``f(module, output, batch)`` that converts a step's output to a form that `step_output` reads, or
            its import path.
        shift: pair logits[t] with targets[t + 1], for labels that equal the inputs (Hugging Face's convention).
        standard_errors: log standard errors over sequences, the first dimension of logits and targets.
        nan_policy: "omit" skips nan rows and invalid targets, as in `TokenMetric.compute`.
        mask_duplicates: give weight 0 to samples that a DistributedSampler repeats to give every rank equally many.
        prog_bar: show the values in the progress bar, without their standard errors.
        logger: send the values to the trainer's loggers, and with them a reliability diagram of each metric that has one, as
            ``…_plot``, to TensorBoard, Weights & Biases and MLflow. Other callbacks can monitor the values in any case.

    To resume a training epoch from a checkpoint, use a loader that continues where it stopped (one with `state_dict` and
    `load_state_dict`, such as torchdata's StatefulDataLoader). Any other loader repeats the epoch's first samples.

        Trainer(callbacks=[XentCallback(["cross_entropy", {"metric": "bits_per_byte", "token_bytes": tokenizer}])])
    """

    def __init__(
        self,
        metrics: list[str | dict[str, Any]],
        stages: Sequence[str] = ("val", "test"),
        adapter: str | Callable[..., Any] | None = None,
        shift: bool = False,
        standard_errors: bool = True,
        nan_policy: NanPolicy = "propagate",
        mask_duplicates: bool = True,
        prog_bar: bool = True,
        logger: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(stages, str) or not stages or set(stages) - set(_STAGES):
            raise MetricOptionError(f"stages is a list of some of {', '.join(_STAGES)}; got {stages!r}")
        self.metrics = build_metrics(metrics, standard_errors=standard_errors)
        self.stages = [stage for stage in _STAGES if stage in stages]
        self.adapter = named_object(adapter) if isinstance(adapter, str) else adapter
        self.shift = shift
        self.nan_policy = nan_policy
        self.mask_duplicates = mask_duplicates
        self.prog_bar = prog_bar
        self.logger = logger
        self._running: dict[str, StageMetrics] = {}

    @property
    def state_key(self) -> str:
        """Distinguishes several of these callbacks in one checkpoint by their metrics and stages."""
        return f"{type(self).__qualname__}[metrics={list(self.metrics)}, stages={self.stages}]"

    def _begin(self, trainer: Any, module: Any, stage: str) -> None:
        if stage in self.stages:
            num_loaders = len(active_loaders(trainer))
            self._running[stage] = StageMetrics(
                self.metrics, stage=stage, num_loaders=num_loaders, device=module.device
            )

    def _add(self, trainer: Any, module: Any, stage: str, output: Any, batch: Any, batch_idx: int, loader: int) -> None:
        if stage not in self._running or (stage == "train" and not output):  # a training step that returned None
            return
        read_batch = read(output if self.adapter is None else self.adapter(module, output, batch), shift=self.shift)
        if self.mask_duplicates:
            read_batch = without_duplicates(read_batch, active_loaders(trainer)[loader], batch_idx)
        self._running[stage].update(loader, *read_batch)

    def _end(self, trainer: Any, module: Any, stage: str) -> None:
        if stage not in self._running:
            return
        metrics, trackers = self._running[stage], trackers_of(trainer) if self.logger else []
        with metrics.all.sync_context():
            values = metrics.compute(nan_policy=self.nan_policy)
            drawn = pictures(metrics.all.members()) if trackers else {}
        del self._running[stage]  # only now: a failed sync must not lose the sums
        log_all(module, values, prog_bar=self.prog_bar, logger=self.logger)
        log_pictures(trackers, drawn, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """The sums so far of an unfinished training epoch, over all ranks; every rank must call this, as Lightning does."""
        return {stage: metrics.state_dict() for stage, metrics in self._running.items() if stage == "train"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint's sums, on any number of ranks."""
        for stage, state in state_dict.items():
            self._running[stage] = StageMetrics(self.metrics, stage=stage, num_loaders=1, device="cpu")
            self._running[stage].load_state_dict(state)

    # Lightning's hooks.

    def on_train_start(self, trainer: Any, module: Any) -> None:
        for metrics in self._running.values():  # loaded from a checkpoint
            metrics.all.to(module.device)

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self._begin(trainer, module, "train")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._add(trainer, module, "train", outputs, batch, batch_idx, 0)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self._end(trainer, module, "train")

    def on_validation_epoch_start(self, trainer: Any, module: Any) -> None:
        self._begin(trainer, module, "val")

    def on_validation_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._add(trainer, module, "val", outputs, batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        self._end(trainer, module, "val")

    def on_test_epoch_start(self, trainer: Any, module: Any) -> None:
        self._begin(trainer, module, "test")

    def on_test_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._add(trainer, module, "test", outputs, batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self, trainer: Any, module: Any) -> None:
        self._end(trainer, module, "test")
