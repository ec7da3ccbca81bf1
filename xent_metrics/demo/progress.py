"""What one sees while the demo trains: a bar with the live validation metrics, or lines where there is no terminal."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.console import Console

__all__ = ["progress_callback"]

#: What is shown, and how it is called where there is little room.
_SHOWN = {
    "train/loss": "loss",
    "val/bits_per_byte": "bits/byte",
    "val/token_accuracy": "accuracy",
    "val/expected_calibration_error": "cal. error",
}


def progress_callback(console: Console) -> Callback:
    """A bar in a terminal, lines elsewhere."""
    return _Bar() if console.is_terminal else _Lines(console)


class _Bar(RichProgressBar):  # type: ignore[misc]  # lightning is skipped by mypy
    """Lightning's, with the newest metrics under short names, and without the rest of its columns."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, str]:
        values = trainer.callback_metrics
        return {short: f"{values[name].item():.3f}" for name, short in _SHOWN.items() if name in values}

    def _get_train_description(self, current_epoch: int) -> str:
        return f"{'Training':{len(self.validation_description)}}"  # there is one epoch; "Epoch 0/0" says less

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
