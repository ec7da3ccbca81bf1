"""What the processes of test_samplers.py run: a loop as users of accelerate write it. See distributed.py."""

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader

from support.distributed import launched
from support.lightning import Sequences, bigrams
from xent_metrics import TokenMetricCollection
from xent_metrics.errors import InvalidInputError
from xent_metrics.samplers import sample_weights

NAMES = ["cross_entropy", "expected_calibration_error"]


def looped(rank, size, loops):
    """Values and counts of each loop, given as (samples, batch size, options): with weights and without."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with launched(rank, size):
        os.environ.update(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
        found = [loop(*each) for each in loops]
    AcceleratorState._reset_state(reset_partial_state=True)
    return found


def loop(samples, batch_size, options):
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))
    data = DataLoader(Sequences(samples), batch_size=batch_size, shuffle=True, generator=torch.Generator())
    net, loader = accelerator.prepare(bigrams(), data)
    weighted, plain = TokenMetricCollection(NAMES), TokenMetricCollection(NAMES)
    weights = sample_weights(loader.batch_sampler)
    for batch in loader:
        weight, weights = weights[: len(batch["ids"])], weights[len(batch["ids"]) :]
        logits, targets = net(batch["ids"]), batch["targets"]
        weighted.update(logits, targets, weight=weight[:, None].expand_as(targets))
        plain.update(logits, targets)
    assert len(weights) == 0
    try:
        refused = str(sample_weights(loader.sampler))
    except InvalidInputError as error:
        refused = str(error)
    return {**of(weighted), "without weights": of(plain)["counted"], "refused": refused}


def of(metrics):
    with metrics.sync_context():
        counted = metrics["cross_entropy"].counts()["counted"]
    return {"values": [value.item() for value in metrics.compute().values()], "counted": counted}
