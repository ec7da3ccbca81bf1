# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # First steps
#
# Cross entropy, perplexity and bits per byte of a small model: exact, with their errors, and split up. The notebook runs on a
# CPU, or on a GPU if there is one. The first cell installs the package from a checkout: clone
# xent-metrics first, and start the notebook in its folder `docs/tutorials`. If the package is there already, it does nothing.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("xent_metrics") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", "../..[analysis]"], check=True)

# %%
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn import functional as F

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)

# %% [markdown]
# ## A model
#
# It reads the bytes of Python's own documentation and predicts the next one from the last eight. Id 256 begins a text.

# %%
CONTEXT = 8
texts = [text for _, text in sorted(topics.items())]


def ids(text):
    """The text's bytes after eight ids of 256."""
    return torch.tensor([256] * CONTEXT + list(text.encode()), device=device)


class LanguageModel(nn.Module):
    """The logits of the byte after each run of eight: ids ``(B, T + 8)`` to logits ``(B, T + 1, 256)``."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(257, 16)
        self.layers = nn.Sequential(nn.Linear(CONTEXT * 16, 128), nn.GELU(), nn.Linear(128, 256))

    def forward(self, ids):
        runs = self.embed(ids).unfold(1, CONTEXT, 1)  # (B, T + 1, 16, 8)
        return self.layers(runs.flatten(2))


model = LanguageModel().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
stream = torch.cat([ids(text) for text in texts[20:60]])
for _ in range(200):
    batch = stream[torch.randint(len(stream) - 72, (16, 1), device=device) + torch.arange(72, device=device)]
    target = batch[:, CONTEXT:]
    logits = model(batch)[:, :-1]
    optimizer.zero_grad()
    F.cross_entropy(logits.flatten(0, 1), target.where(target < 256, -100).flatten()).backward()
    optimizer.step()

# %% [markdown]
# ## One pass, many metrics
#
# A collection scores the logits once for all of its metrics. Each byte is a token here, so every token stands for one byte, and
# bits per byte is the cross entropy in bits.

# %%
from xent_metrics import TokenMetricCollection

metrics = TokenMetricCollection(
    [
        "cross_entropy",
        "perplexity",
        {"metric": "bits_per_byte", "token_bytes": torch.ones(256, dtype=torch.long)},
        "token_accuracy",
        "expected_calibration_error",
    ]
).to(device)


@torch.no_grad()
def scored(text):
    """Logits and targets of a text, ``(1, T, 256)`` and ``(1, T)``."""
    sequence = ids(text)[None]
    return model(sequence)[:, :-1], sequence[:, CONTEXT:]


held_out = texts[:20]
for text in held_out:
    metrics.update(*scored(text))
for name, value in metrics.compute().items():
    print(f"{name:28} {value:.4f}")

# %% [markdown]
# ## The same bits, however the text is cut
#
# Sums are integers, so no order and no batch size changes a bit. Here the same scores are added up in another order and in
# other batches:

# %%
from xent_metrics import CrossEntropy

logits, target = (torch.cat(parts, dim=1)[0] for parts in zip(*map(scored, held_out), strict=True))
whole, in_parts = CrossEntropy().to(device), CrossEntropy().to(device)
whole.update(logits, target)
for part in torch.randperm(len(target), device=device).split(1000):
    in_parts.update(logits[part], target[part])
print("equal to the last bit:", torch.equal(whole.compute(), in_parts.compute()))

# %% [markdown]
# ## How sure is the number?
#
# Documents are the independent samples. Each document's sums are kept, and from them comes an interval:

# %%
from xent_metrics.analysis import compare, delta_interval

metric = CrossEntropy(unit="bits")
states = torch.stack([metric.exact_sums(metric.score(*scored(text))).cpu() for text in held_out])
found = delta_interval(metric, states)
print(f"{found.value:.3f} bits per byte, 95 % interval {found.low:.3f} to {found.high:.3f}")

# %% [markdown]
# ## Is another model better?
#
# The same model at a lower temperature, compared document by document:

# %%
sharper = []
for text in held_out:
    logits, target = scored(text)
    sharper.append(metric.exact_sums(metric.score(1.1 * logits, target)).cpu())
result = compare(metric, states, torch.stack(sharper))
print(
    f"difference {result.difference:+.4f}, 95 % interval {result.low:+.4f} to {result.high:+.4f}, better: {result.better}"
)

# %% [markdown]
# ## Where is the loss?
#
# By position in the text: the first bytes are the hardest, since the model has seen nothing yet.

# %%
from xent_metrics import Grouped, Position

by_position = Grouped(CrossEntropy(unit="bits"), by=Position([0, 1, 4, 16, 256])).to(device)
for text in held_out:
    by_position.update(*scored(text))
for label, value in by_position.by_group().items():
    print(f"{label:12} {value:.3f}")

# %% [markdown]
# ## Next
#
# The same metrics in [Lightning](lightning.md), [lm-eval](lm_eval.md), the [Trainer](trainer.md), [TRL](trl.md) and
# [on several processes](torchrun.md).
