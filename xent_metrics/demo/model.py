"""The toy model: embedding, LSTM and linear layer over bytes, as a LightningModule with its metrics."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xent_metrics.collection import TokenMetricCollection
from xent_metrics.hosts.lm_eval.models.tokenizers import ByteTokenizer, bytes_table
from xent_metrics.scoring.score import score_tokens

__all__ = ["METRICS", "ByteLSTM"]

#: The registered names of the metrics that both hosts report.
METRICS = (
    "cross_entropy",
    "perplexity",
    "bits_per_byte",
    "byte_perplexity",
    "token_accuracy",
    "expected_calibration_error",
    "calibration_weighted_cross_entropy",
)


class ByteLSTM(pl.LightningModule):  # type: ignore[misc]  # lightning is skipped by mypy
    """Maps byte ids ``(B, T)`` to logits ``(B, T, 257)``."""

    def __init__(
        self, embedding: int = 64, hidden: int = 256, lr: float = 6e-3, steps: int = 500, max_length: int = 256
    ):
        super().__init__()
        self.save_hyperparameters()
        self.lr, self.steps, self.max_length = lr, steps, max_length
        vocab_size = ByteTokenizer.vocab_size
        self.embed = nn.Embedding(vocab_size, embedding)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.head = nn.Linear(hidden, vocab_size)
        self.val = TokenMetricCollection(METRICS, prefix="val/")
        self.register_buffer("token_bytes", bytes_table(ByteTokenizer(), vocab_size), persistent=False)
        self.training_losses: list[tuple[int, float]] = []  # (step, nats per byte), for the plot
        self.validation_losses: list[tuple[int, float]] = []
        self.confidence_bins: dict[str, Tensor] = {}

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(self.embed(ids))[0])
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        ids, target = batch
        loss = F.cross_entropy(self(ids).flatten(0, 1), target.flatten())
        self.training_losses.append((self.global_step, loss.item()))
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        ids, target = batch
        self.val.update(score_tokens(self(ids), target, token_bytes=self.token_bytes))
        self.log_dict(self.val)

    def on_validation_epoch_end(self) -> None:
        """Keep the values to plot; Lightning resets the metrics after this."""
        members = self.val.members()
        if self.trainer.state.fn == "fit":
            self.validation_losses.append((self.global_step, members["cross_entropy"].compute().item()))
        calibration = members["expected_calibration_error"]
        self.confidence_bins = {name.partition(".")[2]: sums for name, sums in calibration.totals().items()}

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=self.steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
