"""Metrics on two real processes, joined by gloo: each holds a part of the data, and both must have the value of the whole."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Mapping
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xent_metrics.testing.case import BATCH, Case, message, same

__all__ = ["check_two_processes", "on_two_processes"]

_LIMIT = timedelta(seconds=60)  # for one process to wait for the other
_PATIENCE = 300  # seconds for all metrics
_SHARE = (slice(0, 2), slice(2, BATCH))  # of the sequences, by rank


def on_two_processes(cases: Mapping[str, Case]) -> dict[str, list[Any]]:
    """Update and compute each metric on two new processes, which hold different sequences.

    Args:
        cases: the metrics with their data, by name.

    Returns:
        By name, for each rank the value and the total state, or the text of what went wrong.
    """
    found: dict[str, list[Any]] = {}
    packed: dict[str, bytes] = {}
    for name, case in cases.items():
        try:
            packed[name] = pickle.dumps((case.new(), case.scores))
        except Exception as error:
            found[name] = [f"it can't be sent to another process: {message(error)}"] * 2
    return found | _run(packed)


def _run(packed: Mapping[str, bytes]) -> dict[str, list[Any]]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        workers = []
        for rank in range(2):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there, str(Path(folder, "group")), rank, packed), daemon=True)
            process.start()
            there.close()
            workers.append((process, here))
        answers = [_answer(connection) for _, connection in workers]
        for process, _ in workers:
            process.kill()
            process.join()
    return {name: [each if isinstance(each, str) else each[name] for each in answers] for name in packed}


def _answer(connection: Connection) -> Any:
    """What the process found, or what happened to it."""
    try:
        return (
            pickle.loads(connection.recv_bytes()) if connection.poll(_PATIENCE) else f"no answer in {_PATIENCE} seconds"
        )
    except EOFError:
        return "the process died"


def _work(connection: Connection, file: str, rank: int, packed: Mapping[str, bytes]) -> None:
    torch.set_num_threads(1)
    found: Any
    try:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{file}", rank=rank, world_size=2, timeout=_LIMIT
        )
        found = {name: _total(data, rank) for name, data in packed.items()}
    except Exception:
        found = traceback.format_exc()
    connection.send_bytes(pickle.dumps(found))


def _total(data: bytes, rank: int) -> tuple[Tensor, Tensor] | str:
    """The value and the state over both processes; on an error its traceback, so that the next metric can go on."""
    try:
        metric, scores = pickle.loads(data)
        metric.update(scores[_SHARE[rank]])
        value = metric.compute()
        with metric.sync_context():
            return value, metric.state.clone()
    except Exception:
        return traceback.format_exc()


def check_two_processes(case: Case, answers: list[Any]) -> None:
    """Raise unless both processes found what one process finds of all data.

    Args:
        case: the metric with its data.
        answers: what `on_two_processes` returns for it.
    """
    for rank, answer in enumerate(answers):
        assert not isinstance(answer, str), f"process {rank} of 2: {answer}"
    whole = case.used()
    for rank, (value, state) in enumerate(answers):
        same(state, whole.state, f"the total on process {rank} of 2 and the sums on one")
        same(value, whole.compute(), f"the value on process {rank} of 2 and on one")
