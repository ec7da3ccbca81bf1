"""Bytes of the Python documentation: random crops to train on, and the windows that lm-eval scores to validate on.

The validation batches are those of `TorchLM` with `keep_order`. Both hosts run the same ids in batches of one shape, because
the last bits of a matmul may depend on that shape.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from xent_metrics.hosts.lm_eval.models.tokenizers import ByteTokenizer
from xent_metrics.hosts.lm_eval.models.windows import Window, padded, rolling_windows
from xent_metrics.hosts.lm_eval.python_docs import documents

__all__ = ["BATCH_SIZE", "WINDOW", "Crops", "training_loader", "validation_loader"]

WINDOW = 256  # the most bytes that the model reads at once
BATCH_SIZE = 16
_TOKENIZER = ByteTokenizer()


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Random crops of the training documents: inputs and targets ``(WINDOW,)``, the same for the same seed."""

    def __init__(self, count: int, seed: int = 0) -> None:
        begin = [_TOKENIZER.bos_token_id]
        self.stream = torch.tensor([i for text in documents("train").values() for i in begin + _TOKENIZER.encode(text)])
        generator = torch.Generator().manual_seed(seed)
        self.starts = torch.randint(len(self.stream) - WINDOW, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = int(self.starts[index])
        crop = self.stream[start : start + WINDOW + 1]
        # The id that begins a text is never predicted.
        return crop[:-1], torch.where(crop[1:] == _TOKENIZER.bos_token_id, -100, crop[1:])


def training_loader(steps: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """One batch of crops per step."""
    return DataLoader(Crops(steps * BATCH_SIZE), batch_size=BATCH_SIZE)


def validation_loader() -> DataLoader[Window]:
    """The held-out documents' rolling windows, in order."""
    windows = [
        window
        for text in documents("validation").values()
        for window in rolling_windows(_TOKENIZER.encode(text), prefix_token=_TOKENIZER.bos_token_id, max_length=WINDOW)
    ]
    collate = partial(padded, length=WINDOW, fill=_TOKENIZER.bos_token_id)
    return DataLoader(windows, batch_size=BATCH_SIZE, collate_fn=collate)  # type: ignore[arg-type]  # a list is a dataset
