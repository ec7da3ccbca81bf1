"""The toy model in a real Trainer: what it keeps for the plot."""

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from xent_metrics import score_tokens
from xent_metrics.demo.model import METRICS, ByteLSTM


def batches(count):
    ids = torch.randint(257, (2 * count, 7), generator=torch.Generator().manual_seed(0))
    return DataLoader([(row[:-1], torch.where(row[1:] == 256, -100, row[1:])) for row in ids], batch_size=2)


def test_losses_and_confidences_are_kept_to_be_plotted():
    model = ByteLSTM(embedding=4, hidden=4, steps=4)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, max_epochs=1, val_check_interval=2, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, batches(4), batches(3))
    assert [step for step, _ in model.training_losses] == [0, 1, 2, 3]
    assert [step for step, _ in model.validation_losses] == [2, 4]
    [values] = trainer.validate(model, batches(3), verbose=False)
    assert set(values) == {f"val/{name}" for name in METRICS}
    assert model.validation_losses[-1][1] == values["val/cross_entropy"]
    assert len(model.validation_losses) == 2, "a validation after training is not in the plot"
    sums = model.confidence_bins
    targets = torch.cat([target for _, target in batches(3)])
    assert sums["tokens"].sum() == (targets != -100).sum()


def test_a_byte_is_predicted_from_those_before_it_and_counts_as_one():
    model = ByteLSTM(embedding=4, hidden=4)
    ids = torch.randint(257, (2, 6))
    logits = model(ids)
    assert logits.shape == (2, 6, 257)
    torch.testing.assert_close(model(ids[1:, :3]), logits[1:, :3])
    scores = score_tokens(logits, torch.full((2, 6), 65), token_bytes=model.token_bytes)
    assert scores.num_bytes.tolist() == [[1] * 6] * 2
    assert "token_bytes" not in model.state_dict()
