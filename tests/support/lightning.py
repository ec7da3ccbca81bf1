"""A bigram language model for Lightning's tests: a table of logits, whose bits don't depend on the batch."""

import importlib

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

V, T = 17, 9
PACKAGES = ("lightning.pytorch", "pytorch_lightning")
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}


class Sequences(Dataset):
    """`count` sequences of ids, the same on every machine and rank, with some targets that don't count."""

    def __init__(self, count, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(V, (count, T + 1), generator=generator)
        self.target = self.ids[:, 1:].clone()
        self.target[torch.rand(count, T, generator=generator) < 0.2] = -100

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"ids": self.ids[index, :-1], "targets": self.target[index]}


def table():
    return torch.randn(V, V, generator=torch.Generator().manual_seed(1))


def bigrams(package="lightning.pytorch", **steps):
    """An untrained bigram module of `package`; `steps` replaces methods, e.g. ``validation_step=…``."""
    base = importlib.import_module(package).LightningModule

    class Bigrams(base):
        def __init__(self, lr=0.0):
            super().__init__()
            self.lr = lr
            self.table = nn.Embedding.from_pretrained(table(), freeze=False)

        def forward(self, ids):
            return self.table(ids)

        def training_step(self, batch, batch_idx):
            logits = self(batch["ids"])
            loss = F.cross_entropy(logits.flatten(0, 1).float(), batch["targets"].flatten())
            return {"loss": loss, "logits": logits.detach(), "targets": batch["targets"]}

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            return {"logits": self(batch["ids"]), "targets": batch["targets"]}

        test_step = validation_step

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    for name, step in steps.items():
        setattr(Bigrams, name, step)
    return Bigrams()


def loader(count=10, batch_size=3, seed=0):
    return DataLoader(Sequences(count, seed), batch_size=batch_size)


class Letters:
    """A tokenizer of the letters a to p: ids 0 to 15; 16 begins a text."""

    bos_token_id = V - 1

    def encode(self, text):
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, ids):
        return "".join(chr(ord("a") + i) for i in ids if i < self.bos_token_id)


LETTERS = Letters()
