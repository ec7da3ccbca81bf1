"""The cost of a sync beside torchmetrics, and of an update beside scoring: ratios within one run.

    python benchmarks/sync.py

Groups of processes compute a TokenMetricCollection of five metrics and a torchmetrics MetricCollection of five metrics
with as many states, in turn. Collectives are counted, and answers are checked. Claims:

- compute is at least 8 times as fast as torchmetrics', with one collective, also if members are computed one by one
- updating a metric with the scores of 32,768 tokens takes at most 1 % of the time of scoring them with 50,304 classes
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchmetrics
from claims import Claims
from scoring import backend
from torch import Tensor
from torch.distributed.tensor.debug import CommDebugMode

from xent_metrics import TokenMetricCollection, score_tokens

FIVE = [
    "cross_entropy",
    "perplexity",
    "token_accuracy",
    "expected_calibration_error",
    "calibration_weighted_cross_entropy",
]
TOKENS, VOCAB = 32_768, 50_304
ROUNDS = 15
Calls = dict[str, Callable[[], Any]]


class Sums(torchmetrics.Metric):
    """A torchmetrics metric with float states as ours has sums: two scalars, or several vectors over bins."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__(compute_with_cache=False)
        self.names = [f"sum_{i}" for i in range(len(sizes))]
        for name, size in zip(self.names, sizes, strict=True):
            self.add_state(name, torch.zeros(size or (), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        for name in self.names:
            state = getattr(self, name)
            setattr(self, name, state + values.sum())

    def compute(self) -> Tensor:
        first: Tensor = getattr(self, self.names[0])
        return first.sum() / getattr(self, self.names[1]).sum()


def stock() -> torchmetrics.MetricCollection:
    """As many states as the five have, over as many bins."""
    sizes = {"cross_entropy": [0, 0], "perplexity": [0, 0], "token_accuracy": [0, 0]}
    sizes |= {"expected_calibration_error": [15] * 3, "calibration_weighted_cross_entropy": [15] * 4}
    return torchmetrics.MetricCollection({name: Sums(of) for name, of in sizes.items()}, compute_groups=False)


def median_ms(
    calls: dict[str, Callable[[], Any]], rounds: int = ROUNDS, before: Callable[[], Any] = lambda: None
) -> dict[str, float]:
    """Median milliseconds of each call, taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 2):
        for name, call in calls.items():
            before()
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(taken[2:]) for name, taken in times.items()}


def counted(call: Callable[[], Any]) -> int:
    """How many collectives a call makes, barriers included."""
    barriers, barrier = 0, dist.barrier

    def count(*args: Any, **kwargs: Any) -> Any:
        nonlocal barriers
        barriers += 1
        return barrier(*args, **kwargs)

    dist.barrier = count
    try:
        with CommDebugMode() as mode:
            call()
        return barriers + int(mode.get_total_counts())
    finally:
        dist.barrier = barrier


def process(rank: int, size: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    logits = torch.randn(size, 64, 97, generator=torch.Generator().manual_seed(0))
    target = torch.randint(97, (size, 64), generator=torch.Generator().manual_seed(1))
    ours, theirs, alone = TokenMetricCollection(FIVE), stock(), TokenMetricCollection(FIVE)
    ours.update(logits[rank], target[rank])
    theirs.update(torch.ones(3))
    alone.update(logits, target)
    for metric in alone.members().values():
        metric._to_sync = metric.sync_on_compute = False
    same = ours.compute() == alone.compute()
    counts = {"ours": counted(ours.compute), "theirs": counted(theirs.compute)}

    def one_by_one() -> None:
        for metric in ours.members().values():
            metric.compute()

    counts["one by one"] = counted(one_by_one)
    times = median_ms({"ours": ours.compute, "theirs": theirs.compute, "one by one": one_by_one}, before=dist.barrier)
    if rank == 0:
        states = sum(len(metric.metric_state) for metric in theirs.values())
        found = {"same": same, "states": states, "counts": counts, "times": times}
        Path(f"{file}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def group_case(claims: Claims, size: int, file: Path) -> None:
    mp.spawn(process, args=(size, str(file)), nprocs=size)
    found = json.loads(Path(f"{file}.json").read_text())
    counts, times = found["counts"], found["times"]
    name = f"{size} processes, compute of 5 metrics"
    claims.ratio(
        f"{name}: torchmetrics' {found['states']} states / ours", times["theirs"] / times["ours"], at_least=8,
        seen=f"{times['theirs']:.2f} / {times['ours']:.2f} ms",
    )  # fmt: skip
    claims.holds("  1 collective", counts["ours"] == 1)
    claims.holds("  1 collective where the members compute one by one", counts["one by one"] == 1)
    claims.note("  collectives of torchmetrics'", str(counts["theirs"]))
    claims.note("  ms, the members one by one", f"{times['one by one']:.2f}")
    claims.holds("  the processes together have what one has alone", found["same"])


def update_case(claims: Claims) -> None:
    """`update` with scores of 32,768 tokens, against scoring them at V = 50,304 in parts that fit the memory."""
    part = 2_048
    logits, target = torch.randn(part, VOCAB), torch.randint(VOCAB, (part,))
    scores = score_tokens(torch.randn(TOKENS, 97), torch.randint(97, (TOKENS,)))
    metrics = TokenMetricCollection(FIVE)

    def fresh() -> Any:  # sums that a TokenScores has taken once are not taken again
        return dataclasses.replace(scores)

    calls = {"scoring": lambda: score_tokens(logits, target), "collection": lambda: metrics.update(fresh())}
    calls |= {name: lambda metric=metric: metric.update(fresh()) for name, metric in metrics.clone().members().items()}
    times = median_ms(calls, rounds=5)
    scoring = times.pop("scoring") * (TOKENS // part)
    together = times.pop("collection")
    claims.note(f"update with the scores of {TOKENS:,} tokens / scoring them", f"{scoring:,.0f} ms, by {backend()}")
    for name, taken in times.items():
        claims.ratio(f"  {name}, %", 100 * taken / scoring, at_most=1, seen=f"{taken:.2f} ms")
    claims.ratio("  all five in a collection, %", 100 * together / scoring, seen=f"{together:.2f} ms")
    claims.holds("  every token counted", metrics["cross_entropy"].counts()["counted"] == 7 * TOKENS)


def main() -> None:
    os.environ["XENT_METRICS_PLUGINS"] = ""  # scoring is the package's own pass
    claims = Claims(f"torch {torch.__version__}, torchmetrics {torchmetrics.__version__}, {os.cpu_count()} CPUs, gloo")
    with tempfile.TemporaryDirectory() as folder:
        for size in (2, 4):
            group_case(claims, size, Path(folder, f"group{size}"))
    update_case(claims)
    claims.report()


if __name__ == "__main__":
    main()
