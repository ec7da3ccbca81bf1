"""The demo's progress: a bar with the latest validation metrics, or plain lines outside a terminal."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.console import Console

__all__ = ["progress_callback"]

#: The values to show, with short names.
_SHOWN = {
    "train/loss": "loss",
    "val/bits_per_byte": "bits/byte",
    "val/token_accuracy": "accuracy",
    "val/expected_calibration_error": "cal. error",
}


def progress_callback(console: Console) -> Callback:
    """A progress bar in a terminal, plain lines elsewhere."""
    return _Bar() if console.is_terminal else _Lines(console)


class _Bar(RichProgressBar):  # type: ignore[misc]  # lightning is skipped by mypy
    """Lightning's bar with the latest metrics under short names, and fewer columns."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, str]:
        values = trainer.callback_metrics
        return {short: f"{values[name].item():.3f}" for name, short in _SHOWN.items() if name in values}

    def _get_train_description(self, current_epoch: int) -> str:
        """The label of the bar, in place of "Epoch 0/0": there is only one epoch.

        A private method of RichProgressBar, read in Lightning 2.6.6. If it moves, the bar shows "Epoch 0/0".
        """
        return f"{'Training':{len(self.validation_description)}}"

    def configure_columns(self, trainer: pl.Trainer) -> list[object]:
        description, bar, count, *_ = super().configure_columns(trainer)
        bar.bar_width = 24
        return [description, bar, count]


class _Lines(Callback):  # type: ignore[misc]  # lightning is skipped by mypy
    def __init__(self, console: Console) -> None:
        self.console = console

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            values = trainer.callback_metrics
            shown = ", ".join(f"{short} {values[name].item():.3f}" for name, short in _SHOWN.items() if name in values)
            self.console.print(f"step {trainer.global_step}: {shown}", highlight=False)
