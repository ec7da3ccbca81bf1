"""What the processes of test_sync_faults.py do, and what goes wrong in them, see distributed.py."""

from __future__ import annotations

import os
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from support.distributed import join
from support.distributed_jobs import NAMES, batch, counting
from xent_metrics import CrossEntropy, TokenMetricCollection, score_tokens
from xent_metrics.errors import InvalidTargetError, SyncError

SECONDS = 3.0  # the group's time limit


def _die(*_: Any, **__: Any) -> None:
    os._exit(1)


def _hang(*_: Any, **__: Any) -> None:
    time.sleep(SECONDS + 2)


def _raise(*_: Any, **__: Any) -> None:
    raise MemoryError("mine")


def _die_within(tensor: torch.Tensor, group: Any = None) -> None:
    ALL_REDUCE(tensor, group=group, async_op=True)
    os._exit(1)


ALL_REDUCE = dist.all_reduce
FAULTS: dict[str, Callable[..., None]] = {"dies": _die, "hangs": _hang, "raises": _raise}


def fault(rank: int, size: int, what: str, when: str, folder: str) -> dict[str, Any]:
    """The last rank fails before, in or after the sync; those who can meet in a new group and compute again."""
    rendezvous = _agreed_file(folder, rank)
    metrics = TokenMetricCollection(NAMES)
    metrics.update(batch(rank))
    local = states_of(metrics)
    found: dict[str, Any] = {}
    if rank == size - 1:
        _fail(metrics, what, when)
    else:
        if when == "after":
            metrics.compute()
        found["error"] = error_of(metrics.compute)
        # The members, one by one: none waits for the others, who may have given up.
        found["singly"] = [error_of(metric.compute) for metric in list(metrics.members().values())]
    found["intact"] = states_of(metrics) == local and not any(m._is_synced for m in metrics.members().values())
    dist.destroy_process_group()
    back = size if what == "raises" else size - 1
    if rank < back:
        join(rendezvous, rank, back)
        with counting() as calls:
            found["values"] = [metrics[name].compute().item().hex() for name in NAMES]
        found["calls"] = len(calls)
    return found


def _agreed_file(folder: str, rank: int) -> str:
    """A file that no group has met at, also if the job is done once more."""
    store = dist.distributed_c10d._get_default_store()
    if rank == 0:
        store.set("again", str(Path(folder, uuid.uuid4().hex)))
    return store.get("again").decode()


def _fail(metrics: TokenMetricCollection, what: str, when: str) -> None:
    within = _die_within if what == "dies" else FAULTS[what]
    try:
        if when == "before":
            FAULTS[what]()
        elif when == "in":
            with mock.patch.object(dist, "all_reduce", within):
                metrics.compute()
        else:
            metrics.compute()
            FAULTS[what]()
    except MemoryError:
        return
    except SyncError as error:
        unreduced = what == "hangs" and "what came back is not the sum over 3 processes" in str(error)
        if not (unreduced or isinstance(error.__cause__, MemoryError)):
            raise


def error_of(compute: Callable[[], Any]) -> str:
    try:
        return f"no error but {compute()}"
    except SyncError as error:
        return str(error)


def states_of(metrics: TokenMetricCollection) -> list[Any]:
    return [metric.state.tolist() for metric in metrics.members().values()]


def together(ranks: int) -> list[str]:
    """The values over the batches of the first `ranks`."""
    metrics = TokenMetricCollection(NAMES)
    for rank in range(ranks):
        metrics.update(batch(rank))
    return [metrics[name].compute().item().hex() for name in NAMES]


def not_a_number(rank: int, size: int) -> dict[str, Any]:
    """One rank's logits hold nan in three rows of eight, and an infinite loss in one."""
    metric, logits = CrossEntropy(), torch.zeros(8, 5)
    if rank == 1:
        logits[:3, 1] = torch.nan
        logits[3, 0] = -torch.inf
    metric.update(logits, torch.zeros(8, dtype=torch.int64))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = metric.compute().item()
    with metric.sync_context():
        counts = metric.counts()
    collection = TokenMetricCollection({"own": metric.clone()})
    return {
        "value": str(value),
        "warning": str(caught[0].message),
        "counts": counts,
        "finite": metric.compute(nan_policy="omit").item(),
        "in a collection": collection.compute(nan_policy="omit")["own"].item(),
    }


def invalid_targets(rank: int, size: int) -> dict[str, Any]:
    """One rank's targets are out of range: all hear of it, and the group goes on."""
    metrics = TokenMetricCollection(NAMES)
    metrics.update(score_tokens(torch.zeros(4, 8), torch.tensor([1, 2, 8 if rank == 1 else 3, 4])))
    before, found = states_of(metrics), {}
    for name, compute in {"together": metrics.compute, "alone": metrics["perplexity"].compute}.items():
        try:
            compute()
        except InvalidTargetError as error:
            found[name] = str(error)
    found["intact"] = states_of(metrics) == before
    found["finite"] = metrics.compute(nan_policy="omit")["perplexity"].item()
    metrics.reset()
    metrics.update(batch(rank))
    return found | {"later": [metrics[name].compute().item().hex() for name in NAMES]}
