"""XentCallback: metrics by name for any LightningModule, exact over batches, ranks and checkpoints.

A stage's sums begin at zero when its epoch begins and are added up over the ranks when it ends. Those of a training
epoch go into every checkpoint that is written before its end, and a resumed epoch goes on from them; a validation that
was interrupted is run again from its first batch, as Lightning does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xent_metrics.errors import MetricOptionError
from xent_metrics.hosts.config import build_metrics, named_object
from xent_metrics.hosts.lightning.callback import Callback, log_all
from xent_metrics.hosts.lightning.duplicates import loaders_of, without_duplicates
from xent_metrics.hosts.lightning.stage import StageMetrics
from xent_metrics.hosts.lightning.step_output import read
from xent_metrics.sums.metric import NanPolicy

__all__ = ["XentCallback"]

_STAGES = ("train", "val", "test")


class XentCallback(Callback):
    """Log metrics with standard errors, at the end of each epoch of a stage, as ``val/cross_entropy`` and ``…_stderr``.

    Args:
        metrics: registered names, or dicts with `metric`, its options, and a `name` to log it under. A string as
            `token_bytes` is the import path of a tokenizer, of a table, or of a function without arguments that gives one.
        stages: of "train", "val" and "test".
        adapter: ``f(module, output, batch)`` that makes of a step's output what `step_output` reads; or its import path.
        shift: logits[t] score targets[t + 1], for labels that are the inputs (Hugging Face's convention).
        standard_errors: over sequences, the first dimension of logits and targets (`StandardError`).
        nan_policy: "omit" leaves rows of nan and invalid targets out of the sums, as in `TokenMetric.compute`.
        mask_duplicates: give the samples that a DistributedSampler repeats to fill its last round the weight 0.
        prog_bar, logger: where to show them; callbacks can monitor them either way.

    A training epoch that is resumed from a checkpoint needs a loader that goes on where it was (one with `state_dict` and
    `load_state_dict`, such as torchdata's StatefulDataLoader): what begins anew gives samples a second time.

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
            raise MetricOptionError(f"stages is a list of {', '.join(_STAGES)}; got {stages!r}")
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
        """Two of them in one trainer keep their checkpoints apart by what they measure."""
        return self._generate_state_key(metrics=list(self.metrics), stages=self.stages)

    def _begin(self, trainer: Any, module: Any, stage: str) -> None:
        if stage in self.stages:
            num_loaders = len(loaders_of(trainer))
            self._running[stage] = StageMetrics(
                self.metrics, stage=stage, num_loaders=num_loaders, device=module.device
            )

    def _add(self, trainer: Any, module: Any, stage: str, output: Any, batch: Any, batch_idx: int, loader: int) -> None:
        if stage not in self._running or (stage == "train" and not output):  # a training step that returned None
            return
        given = read(output if self.adapter is None else self.adapter(module, output, batch), shift=self.shift)
        if self.mask_duplicates:
            given = without_duplicates(given, loaders_of(trainer)[loader], batch_idx)
        self._running[stage].update(loader, *given)

    def _end(self, module: Any, stage: str) -> None:
        if stage not in self._running:
            return
        values = self._running[stage].compute(nan_policy=self.nan_policy)
        del self._running[stage]  # not before: a sync that fails loses nothing
        log_all(module, values, prog_bar=self.prog_bar, logger=self.logger)

    def state_dict(self) -> dict[str, Any]:
        """The sums of a training epoch that hasn't ended, over all ranks; every rank must call it, as Lightning does."""
        return {stage: metrics.state_dict() for stage, metrics in self._running.items() if stage == "train"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's sums, on this or any other number of ranks."""
        for stage, state in state_dict.items():
            self._running[stage] = StageMetrics(self.metrics, stage=stage, num_loaders=1, device="cpu")
            self._running[stage].load_state_dict(state)

    # Lightning's hooks.

    def on_train_start(self, trainer: Any, module: Any) -> None:
        for metrics in self._running.values():  # what a checkpoint brought back
            metrics.all.to(module.device)

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self._begin(trainer, module, "train")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._add(trainer, module, "train", outputs, batch, batch_idx, 0)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self._end(module, "train")

    def on_validation_epoch_start(self, trainer: Any, module: Any) -> None:
        self._begin(trainer, module, "val")

    def on_validation_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._add(trainer, module, "val", outputs, batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        self._end(module, "val")

    def on_test_epoch_start(self, trainer: Any, module: Any) -> None:
        self._begin(trainer, module, "test")

    def on_test_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._add(trainer, module, "test", outputs, batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self, trainer: Any, module: Any) -> None:
        self._end(module, "test")
