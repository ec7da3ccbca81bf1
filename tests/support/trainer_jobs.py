"""Jobs that tests of the Hugging Face Trainer run in each process."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from support.distributed import counted, launched
from support.lightning import Sequences, V, table
from xent_metrics.hosts.transformers import TrainerMetrics

METRICS = ["cross_entropy", "perplexity", "token_accuracy", {"metric": "expected_calibration_error", "num_bins": 5}]


class Bigrams(nn.Module):
    """Like a causal model of transformers: labels equal the ids, and the model shifts them for its loss."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(table(), freeze=False)

    def forward(self, input_ids, labels=None):
        logits = self.table(input_ids)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


def examples(count):
    """Sequences of different lengths, for the collator to pad; the fourth has only ignored labels."""
    data = Sequences(count)
    labels = torch.cat([data.ids[:, :1], data.target], dim=1)
    labels[3:4] = -100
    return [
        {"input_ids": ids[: 4 + i % 7], "labels": own[: 4 + i % 7]}
        for i, (ids, own) in enumerate(zip(data.ids, labels, strict=True))
    ]


class Breaking(list):
    """Examples of which one can't be read, once; those of an earlier batch can."""

    broken = True

    def __getitem__(self, index):
        if index == 5 and self.broken:
            self.broken = False
            raise OSError("the disk is gone")
        return super().__getitem__(index)


def collate(batch):
    pad = nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad([example["input_ids"] for example in batch], batch_first=True),
        "labels": pad([example["labels"] for example in batch], batch_first=True, padding_value=-100),
    }


def make_trainer(model, data, folder, metrics=None, preprocess=None, callbacks=None, **options):
    """A Trainer on the CPU; with `metrics` as its `compute_metrics`, if they are given."""
    arguments = TrainingArguments(
        folder, use_cpu=True, disable_tqdm=True, label_names=["labels"],
        **{"report_to": [], "per_device_eval_batch_size": 2, **options},
    )  # fmt: skip
    return Trainer(
        model, arguments, train_dataset=data, eval_dataset=data, data_collator=collate, compute_metrics=metrics,
        preprocess_logits_for_metrics=preprocess or (metrics and metrics.preprocess_logits), callbacks=callbacks,
    )  # fmt: skip


def evaluate(model, data, folder, metrics=None, preprocess=None, **options):
    metrics = metrics or TrainerMetrics(METRICS)
    return own_values(make_trainer(model, data, folder, metrics, preprocess, **options).evaluate())


def attached(model, data, folder, metrics=None, **options):
    """The values of hidden states."""
    trainer = make_trainer(model, data, folder, **options)
    (metrics or TrainerMetrics(METRICS)).attach(trainer)
    return own_values(trainer.evaluate())


def own_values(found):
    names = [
        name
        for name in found
        if not name.startswith(("eval_loss", "eval_runtime", "eval_model", "eval_steps", "eval_samples"))
    ]
    return {name: found[name] for name in names if name != "epoch"}


def evaluated(rank, size, folder, count):
    with launched(rank, size), counted() as calls:
        found = [evaluate(Bigrams(), examples(count), folder, batch_eval_metrics=batch) for batch in (False, True)]
    return {"found": found, "collectives": len(calls)}


def tiny_llama():
    """A small causal model with a head of its own, the same in each process."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, max_position_embeddings=16, initializer_range=0.5, **sizes))


def attached_in_each_process(rank, size, folder, count):
    with launched(rank, size):
        own, attached = (make_trainer(tiny_llama(), examples(count), folder) for _ in range(2))
        TrainerMetrics(METRICS).attach(attached)
        return {"found": attached.evaluate(), "loss": own.evaluate()["eval_loss"]}
