"""Train a tiny model on two processes; the validation loss has the bits that one process gets."""

from pydoc_data.topics import topics

import torch
import torch.distributed as dist
from tokenizers import ByteLevelBPETokenizer
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from xent_metrics import TokenMetricCollection
from xent_metrics.samplers import UnpaddedSampler

WINDOW = 64
texts = [text for _, text in sorted(topics.items())]
split_texts = {"train": texts[20:60], "validation": texts[:20]}
tokenizer = ByteLevelBPETokenizer()
tokenizer.train_from_iterator(split_texts["train"], vocab_size=512, special_tokens=["<s>"], show_progress=False)


def windows(split):
    """Inputs and targets, ``(windows, 64)`` each, of all documents end to end."""
    ids = torch.tensor([i for text in split_texts[split] for i in [0, *tokenizer.encode(text).ids]])
    starts = range(0, len(ids) - WINDOW, WINDOW)
    return [(ids[start : start + WINDOW], ids[start + 1 : start + WINDOW + 1]) for start in starts]


class LanguageModel(nn.Module):
    """An embedding, a GRU and a linear layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(512, 64)
        self.gru = nn.GRU(64, 128, batch_first=True)
        self.head = nn.Linear(128, 512)

    def forward(self, ids):
        return self.head(self.gru(self.embed(ids))[0])


def train(model, data):
    """One epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for inputs, targets in DataLoader(data, batch_size=16, sampler=DistributedSampler(data)):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()


@torch.no_grad()
def validate(model, data, sampler):
    """This process' share, one window at a time: exact sums, and a mean of batch means for comparison."""
    metrics = TokenMetricCollection(["cross_entropy", {"metric": "bits_per_byte", "token_bytes": tokenizer}])
    means = []
    for inputs, targets in DataLoader(data, batch_size=1, sampler=sampler):
        logits = model(inputs)
        metrics.update(logits, targets)
        means.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    return metrics, torch.stack(means).mean()


dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = DistributedDataParallel(LanguageModel())
train(model, windows("train")[:640])

held_out = windows("validation")[:101]  # an odd number: one process gets one more
metrics, mean = validate(model.module, held_out, UnpaddedSampler(held_out, shuffle=False))
values = metrics.compute()  # one all_reduce for both metrics; every process gets the totals
dist.all_reduce(mean)

for turn in range(size):
    if turn == rank:
        shown = ", ".join(f"{name} {value.item():.6f}" for name, value in values.items())
        tokens = metrics["cross_entropy"].counts()["counted"]
        print(f"rank {rank}: {shown}, {tokens} tokens of its own", flush=True)
    dist.barrier()

dist.destroy_process_group()
if rank == 0:  # without a group, nothing is synced
    alone, _ = validate(model.module, held_out, None)
    same = {name: torch.equal(value, values[name]) for name, value in alone.compute().items()}
    print(f"one process alone gets the same bits: {same}")
    print(f"mean of the processes' means: {mean / size:.6f}")
