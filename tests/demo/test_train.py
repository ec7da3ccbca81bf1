"""The demo's training: whole intervals, and the best checkpoint, not the last."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from xent_metrics.demo.model import METRICS, ByteLSTM
from xent_metrics.demo.train import FEWEST_STEPS, steps_in, train, validate, whole_intervals


class Spoils(Callback):
    """Turns the model for the worse after the third step, and keeps the bits per byte of each validation."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 3:
            module.head.bias.data[32:128] -= 10

    def on_validation_epoch_end(self, trainer, module):
        self.values.append(trainer.callback_metrics["val/bits_per_byte"].item())


def test_the_checkpoint_is_that_of_the_fewest_bits(tmp_path):
    torch.manual_seed(0)
    model, seen = ByteLSTM(embedding=4, hidden=4, steps=4), Spoils()
    checkpoint = train(model, 2, tmp_path, seen)
    assert checkpoint == tmp_path / "byte-lstm.ckpt"
    best, last = seen.values
    assert best < last
    found = validate(model, checkpoint)
    assert found["bits_per_byte"] == best
    assert set(found) == set(METRICS)


@pytest.mark.parametrize("steps", [1, 19, 20, 21, 160, 161, 500, 12_345])
def test_the_last_step_is_validated(steps):
    rounded, interval = whole_intervals(steps)
    assert rounded % interval == 0
    assert steps <= rounded < steps + interval
    assert interval >= FEWEST_STEPS
    assert rounded // interval <= 9


def test_more_time_is_more_steps():
    assert steps_in(0.0) == 1
    assert steps_in(1e6) > 1
