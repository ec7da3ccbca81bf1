"""A bigram language model for tests of Lightning, and the values that metrics must have on it.

The logits are rows of a table, so that their bits don't depend on the batch.
"""

import importlib

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from xent_metrics import TokenMetricCollection, get_metric, score_tokens
from xent_metrics.analysis import StandardError

V, T = 17, 9
PACKAGES = ("lightning.pytorch", "pytorch_lightning")
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}


class Sequences(Dataset):
    """`count` sequences of ids, equal on every machine and rank, with some ignored targets."""

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
    """An untrained bigram module of `package`; `steps` overrides methods: ``validation_step=…``."""
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
    """A tokenizer of the letters a to p, ids 0 to 15; 16 is BOS."""

    bos_token_id = V - 1

    def encode(self, text):
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, ids):
        return "".join(chr(ord("a") + i) for i in ids if i < self.bos_token_id)


LETTERS = Letters()


BYTES = torch.arange(V) % 4
METRICS = ["cross_entropy", "perplexity", {"metric": "bits_per_byte", "token_bytes": BYTES}, "token_accuracy"]


def trainer(*callbacks, package="lightning.pytorch", **options):
    """A quiet Trainer of `package` on the CPU."""
    return importlib.import_module(package).Trainer(
        accelerator="cpu", callbacks=list(callbacks), **{**QUIET, **options}
    )


def expected(data, metrics=METRICS, stage="val"):
    """The metrics over all of the data at once."""
    scores = score_tokens(table()[data.ids[:, :-1]], data.target)
    return values_of(metrics, [scores], stage)


def values_of(metrics, scores, stage="val"):
    """The metrics over parts of the data, with standard errors, under the names that XentCallback logs."""
    entries = [{"metric": entry} if isinstance(entry, str) else dict(entry) for entry in metrics]
    built = {entry["metric"]: get_metric(entry.pop("metric"), **entry) for entry in [dict(e) for e in entries]}
    built |= {f"{name}_stderr": StandardError(metric) for name, metric in built.items()}
    collection = TokenMetricCollection(built, prefix=f"{stage}/")
    for part in scores:
        collection.update(part)
    return collection.compute()


def nats_and_tokens(data):
    """The nats and tokens of each sequence, by torch's own cross entropy."""
    logits = table()[data.ids[:, :-1]]
    nats = F.cross_entropy(logits.mT.double(), data.target, reduction="none", ignore_index=-100)
    return nats.sum(1).numpy(), (data.target != -100).sum(1).numpy()
