"""The demo's progress, shown by a real Trainer: a bar in a terminal, lines elsewhere."""

import io

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from xent_metrics.demo.progress import progress_callback


class Module(pl.LightningModule):
    """Logs values that are made up."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        self.log("train/loss", 4.0)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/bits_per_byte", 2.5)
        self.log("val/something_else", 7.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(callback):
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=isinstance(callback, RichProgressBar), max_epochs=1, val_check_interval=2,
        num_sanity_val_steps=0, callbacks=[callback],
    )  # fmt: skip
    data = DataLoader(torch.zeros(4, 1))
    trainer.fit(Module(), data, data)
    return trainer


def test_outside_a_terminal_each_validation_in_training_is_a_line():
    shown = io.StringIO()
    callback = progress_callback(Console(file=shown))
    trainer = trained(callback)
    lines = ["step 2: loss 4.000, bits/byte 2.500", "step 4: loss 4.000, bits/byte 2.500"]
    assert shown.getvalue().splitlines() == lines
    trainer.validate(trainer.lightning_module, DataLoader(torch.zeros(1, 1)), verbose=False)
    assert shown.getvalue().splitlines() == lines


@pytest.mark.filterwarnings("ignore")
def test_in_a_terminal_it_is_a_bar_with_short_names():
    callback = progress_callback(Console(file=io.StringIO(), force_terminal=True))
    assert isinstance(callback, RichProgressBar)
    trainer = trained(callback)
    assert callback.get_metrics(trainer, trainer.lightning_module) == {"loss": "4.000", "bits/byte": "2.500"}
