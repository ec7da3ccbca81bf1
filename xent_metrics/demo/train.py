"""The demo's Lightning part: train, keep the checkpoint with the fewest bits per byte, and validate it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar

from xent_metrics.demo.data import training_loader, validation_loader
from xent_metrics.demo.model import ByteLSTM

__all__ = ["FEWEST_STEPS", "steps_in", "train", "validate", "whole_intervals"]

FEWEST_STEPS = 20  # between validations
_MOST_VALIDATIONS = 8


def steps_in(seconds: float) -> int:
    """How many training steps fit into this time on this machine, measured by the second step of a throwaway model."""
    ends: list[float] = []
    model = ByteLSTM(steps=2)
    model.on_train_batch_end = lambda *_: ends.append(time.monotonic())
    _trainer(max_steps=2, enable_checkpointing=False, limit_val_batches=0).fit(model, training_loader(2))
    return max(1, round(seconds / (ends[1] - ends[0])))


def whole_intervals(steps: int) -> tuple[int, int]:
    """The number of steps, rounded up so that the last is validated, and the number between validations.

    >>> whole_intervals(500)
    (558, 62)
    """
    interval = max(FEWEST_STEPS, steps // _MOST_VALIDATIONS)
    return -(-steps // interval) * interval, interval


def train(model: ByteLSTM, interval: int, output: Path, shown: Callback) -> Path:
    """Train for `model.steps` and return the checkpoint with the fewest bits per byte on the held-out documents."""
    best = ModelCheckpoint(
        dirpath=output, filename="byte-lstm", monitor="val/bits_per_byte", mode="min", enable_version_counter=False
    )
    trainer = _trainer(
        max_steps=model.steps,
        val_check_interval=interval,
        callbacks=[best, shown],
        enable_progress_bar=isinstance(shown, ProgressBar),
    )
    trainer.fit(model, training_loader(model.steps), validation_loader())
    return Path(best.best_model_path)


def validate(model: ByteLSTM, checkpoint: Path) -> dict[str, float]:
    """Lightning's values for the checkpoint, by metric."""
    trainer = _trainer(enable_checkpointing=False)
    [values] = trainer.validate(model, validation_loader(), ckpt_path=checkpoint, verbose=False, weights_only=True)
    return {name.partition("/")[2]: value for name, value in values.items()}


def _trainer(**options: Any) -> pl.Trainer:
    defaults = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "max_epochs": 1}
    return pl.Trainer(accelerator="cpu", devices=1, logger=False, gradient_clip_val=1.0, **(defaults | options))
