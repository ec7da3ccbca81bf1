"""Train a tiny model with Lightning; log its cross entropy, bits per byte and accuracy with their standard errors."""

from pydoc_data.topics import topics

import lightning.pytorch as pl
import torch
from tokenizers import ByteLevelBPETokenizer
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from xent_metrics.hosts.lightning import XentCallback

texts = [text for _, text in sorted(topics.items())]
split_texts = {"train": texts[20:60], "validation": texts[:20]}
tokenizer = ByteLevelBPETokenizer()
tokenizer.train_from_iterator(split_texts["train"], vocab_size=512, special_tokens=["<s>"], show_progress=False)


def paragraphs(split):
    """The ids of each paragraph after id 0, which begins a text; at most 128 of them."""
    texts = [text for document in split_texts[split] for text in document.split("\n\n") if text.strip()]
    return [torch.tensor([0, *tokenizer.encode(text).ids][:128]) for text in texts]


def collate(batch):
    """Inputs and targets, one step apart; targets of −100 fill shorter paragraphs up and don't count."""
    inputs = pad_sequence([ids[:-1] for ids in batch], batch_first=True)
    targets = pad_sequence([ids[1:] for ids in batch], batch_first=True, padding_value=-100)
    return inputs, targets


class LanguageModel(pl.LightningModule):
    """An embedding, a GRU and a linear layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(512, 64)
        self.gru = nn.GRU(64, 128, batch_first=True)
        self.head = nn.Linear(128, 512)

    def forward(self, ids):
        return self.head(self.gru(self.embed(ids))[0])

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return F.cross_entropy(self(inputs).flatten(0, 1), targets.flatten())

    def validation_step(self, batch, batch_idx):
        inputs, targets = batch
        logits = self(inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        self.log("val/mean_of_batch_means", loss, batch_size=len(inputs))
        return {"logits": logits, "targets": targets}  # what XentCallback reads

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


callback = XentCallback(
    metrics=["cross_entropy", {"metric": "bits_per_byte", "token_bytes": tokenizer}, "token_accuracy"]
)
best = pl.callbacks.ModelCheckpoint(dirpath="checkpoints", monitor="val/bits_per_byte", mode="min")

pl.seed_everything(0, verbose=False)
trainer = pl.Trainer(
    max_steps=40, val_check_interval=20, callbacks=[callback, best], accelerator="cpu", devices=1, logger=False,
    num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
training = DataLoader(paragraphs("train"), batch_size=16, shuffle=True, collate_fn=collate)
held_out = paragraphs("validation")[:100]
model = LanguageModel()
trainer.fit(model, training, DataLoader(held_out, batch_size=16, collate_fn=collate))
for name, value in sorted(trainer.callback_metrics.items()):
    print(f"{name:28} {value:.4f}")

for batch_size in (4, 64):
    loader = DataLoader(held_out, batch_size=batch_size, collate_fn=collate)
    [values] = trainer.validate(model, loader, verbose=False)
    print(f"batch_size={batch_size:<3} our cross entropy {values['val/cross_entropy']:.4f}, "
          f"Lightning's mean of batch means {values['val/mean_of_batch_means']:.4f}")  # fmt: skip
