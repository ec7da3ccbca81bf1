"""Epochs of training-like updates and computes in two processes, for as long as you like: nothing grows, and no bit changes.

    python benchmarks/soak.py [--minutes 60] [--quick]

Each epoch updates a collection of five metrics with the same 50 batches, in another order each time, some by `forward`, and
computes it. In the middle of every third epoch the collection is saved, pickled and loaded into a new one, and every fifth is
made of two collections that are merged. Claims: every epoch has the bits of the first, which are those of one process with all
batches; one collective for each epoch; from a tenth of the epochs on, the processes' peak of memory grows by at most 8 MiB, and
at the end no more tensors are alive than then.
"""

from __future__ import annotations

import argparse
import gc
import json
import pickle
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from claims import Claims
from sync import FIVE, counted

from xent_metrics import TokenMetricCollection

BATCHES, ROWS, VOCAB, PROCESSES = 50, 256, 101, 2
WARM = 10  # epochs at least before memory is looked at


def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return 3 * torch.randn(ROWS, VOCAB, generator=generator), torch.randint(VOCAB, (ROWS,), generator=generator)


def add(metrics: TokenMetricCollection, numbers: list[int]) -> None:
    """Update with batches, every tenth by `forward`, as Lightning logs steps."""
    for place, number in enumerate(numbers):
        (metrics if place % 10 == 0 else metrics.update)(*batch(number))


def reloaded(metrics: TokenMetricCollection) -> TokenMetricCollection:
    """Another collection with the state of this one, by way of a checkpoint and a pickle."""
    metrics.persistent(True)
    other = TokenMetricCollection(FIVE)
    other.load_state_dict(pickle.loads(pickle.dumps(metrics.state_dict())))
    return pickle.loads(pickle.dumps(other))


def epoch(number: int, mine: list[int]) -> TokenMetricCollection:
    """A collection that has seen the batches, by the way that the number of the epoch says."""
    order = torch.randperm(len(mine), generator=torch.Generator().manual_seed(number)).tolist()
    first, second = ([mine[i] for i in part] for part in (order[: len(mine) // 2], order[len(mine) // 2 :]))
    metrics = TokenMetricCollection(FIVE)
    add(metrics, first)
    if number % 3 == 0:
        metrics = reloaded(metrics)
    if number % 5 == 0:
        other = TokenMetricCollection(FIVE)
        add(other, second)
        for name, metric in metrics.members().items():
            metric.merge_state(other.members()[name])
    else:
        add(metrics, second)
    return metrics


def alone() -> dict[str, float]:
    """What one process says of all batches."""
    metrics = TokenMetricCollection(FIVE)
    for metric in metrics.members().values():
        metric._to_sync = metric.sync_on_compute = False
    add(metrics, list(range(BATCHES)))
    return numbers(metrics.compute())


def numbers(values: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def peak() -> float:
    """Of this process's memory in MiB."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


def process(rank: int, file: str, seconds: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=PROCESSES)
    expected, mine = alone(), list(range(rank, BATCHES, PROCESSES))
    start, epochs, changed, collectives = time.monotonic(), 0, 0, 0
    warm: tuple[float, int] | None = None
    while not over(seconds, start) or epochs < 2 * WARM:
        metrics = epoch(epochs, mine)
        collectives += counted(lambda: metrics.compute())  # noqa: B023 - called at once
        changed += numbers(metrics.compute()) != expected
        del metrics
        epochs += 1
        if warm is None and epochs >= WARM and time.monotonic() - start > seconds / 10:
            warm = peak(), tensors()
    assert warm is not None
    found = {
        "epochs": epochs, "changed": changed, "collectives": collectives,
        "grown": peak() - warm[0], "tensors": tensors() - warm[1], "peak": peak(),
    }  # fmt: skip
    Path(f"{file}.{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def over(seconds: float, start: float) -> bool:
    """Whether any process has run for so long: all must stop after the same epoch."""
    flag = torch.tensor(int(time.monotonic() - start > seconds))
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--quick", action="store_true", help="20 epochs")
    given = parser.parse_args()
    claims = Claims(
        "two processes" if given.quick else f"two processes for {given.minutes:g} minutes", quick=given.quick
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rendezvous"
        mp.spawn(process, args=(str(file), 0 if given.quick else 60 * given.minutes), nprocs=PROCESSES)
        found = [json.loads(Path(f"{file}.{rank}.json").read_text()) for rank in range(PROCESSES)]
    epochs = found[0]["epochs"]
    claims.note("epochs", f"{epochs:,} of {BATCHES} batches of {ROWS} tokens")
    claims.holds("all have the bits of one process", not any(each["changed"] for each in found))
    claims.holds("one collective an epoch", all(each["collectives"] == epochs for each in found))
    seen = f"peak {max(each['peak'] for each in found):.0f} MiB"
    claims.ratio("the peak of memory grew by MiB", max(each["grown"] for each in found), at_most=8, seen=seen)
    claims.ratio("more tensors alive", max(each["tensors"] for each in found), at_most=0)
    claims.report()


if __name__ == "__main__":
    main()
