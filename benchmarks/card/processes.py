"""Sync in processes of their own: one rank under NCCL and gloo, and two gloo ranks that share the card."""

from __future__ import annotations

import datetime
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from card.cases import EIGHT, Route, Sizes
from card.device import Card
from card.record import Section
from xent_metrics import CrossEntropy, TokenMetricCollection

TIMEOUT = 40.0  # seconds
ROWS, VOCAB_SIZE, ROUNDS = 64, 1000, 11


def sync(card: Card, sizes: Sizes, routes: list[Route], section: Section) -> None:
    """A collection of 8 and a metric, synced, beside one that saw the batches of all ranks."""
    cases = [("gloo", 2)] if card.dry else [("nccl", 1), ("gloo", 1), ("gloo", 2)]
    for backend, size in cases:
        what = f"{backend}, {size} {'process' if size == 1 else 'processes on one card'}"
        if section.out_of_time(what):
            continue
        found, problem = in_processes(backend, size, str(card.device), TIMEOUT * (10 if card.dry else 1))
        numbers = {} if problem else {"compute_ms": max(rank["compute_ms"] for rank in found)}
        if problem:
            numbers["error"] = problem
        section.check(what, not problem and all(rank["same"] for rank in found), **numbers)


def in_processes(backend: str, size: int, device: str, timeout: float) -> tuple[list[dict[str, Any]], str]:
    """What each rank found, and what went wrong; processes that hang are ended."""
    with tempfile.TemporaryDirectory() as folder:
        context = mp.start_processes(
            process, args=(backend, size, device, timeout, folder), nprocs=size, join=False, start_method="spawn"
        )
        deadline = time.monotonic() + timeout
        try:
            while not context.join(timeout=1):
                if time.monotonic() > deadline:
                    return [], f"no end after {timeout:.0f} s"
        except Exception as error:
            return [], str(error).strip().splitlines()[-1][:300]
        finally:
            for each in context.processes:
                if each.is_alive():
                    each.kill()
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(size)], ""


def process(rank: int, backend: str, size: int, device: str, timeout: float, folder: str) -> None:
    torch.set_num_threads(1)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, init_method=f"file://{folder}/store", rank=rank, world_size=size,
        timeout=datetime.timedelta(seconds=timeout / 2),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(size, ROWS, VOCAB_SIZE, generator=generator)
    target = torch.randint(VOCAB_SIZE, (size, ROWS), generator=generator)
    logits, target = logits.to(device), target.to(device)
    ours, metric = TokenMetricCollection(EIGHT).to(device), CrossEntropy().to(device)
    alone = TokenMetricCollection(EIGHT).to(device)
    for member in alone.members().values():
        member.sync_on_compute = member._to_sync = False
    ours.update(logits[rank], target[rank])
    metric.update(logits[rank], target[rank])
    for part in range(size):
        alone.update(logits[part], target[part])
    expected = alone.compute()
    same = all(torch.equal(value, expected[name]) for name, value in ours.compute().items())
    same &= torch.equal(metric.compute(), expected["cross_entropy"])
    times = []
    for _ in range(ROUNDS):
        for member in ours.members().values():
            member._computed = None
        start = time.perf_counter()
        ours.compute()
        times.append(1e3 * (time.perf_counter() - start))
    torch.save({"same": same, "compute_ms": sorted(times)[ROUNDS // 2]}, Path(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()
