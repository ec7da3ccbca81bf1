"""Real processes for tests: workers that stay alive between jobs, joined by gloo over a file, a new group for each job.

A job is a function of a module that a fresh interpreter can import (not of a test module): ``job(rank, size, *args)``.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

DIED = "the process died"
LIMIT = timedelta(seconds=60)  # to find each other
TRIES = 3  # at that: gloo's processes now and then miss each other on a machine that stands still for a while
PATIENCE = 600  # for a machine that has much else to do


class MissedError(RuntimeError):
    """The processes of a group did not find each other."""


def join(file: str, rank: int, size: int, seconds: float = 300, backend: str = "gloo") -> None:
    """Make the default process group; `seconds` is its time limit once all are there."""
    try:
        dist.init_process_group(backend, init_method=f"file://{file}", rank=rank, world_size=size, timeout=LIMIT)
    except Exception as error:
        raise MissedError(f"rank {rank} of {size} did not find the others") from error
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))


def wait_for_all(what: str, rank: int, size: int) -> None:
    """Go on when all processes are here, by the default group's store, for groups that have failed."""
    store = dist.distributed_c10d._get_default_store()
    store.set(f"{what}/{rank}", "here")
    store.wait([f"{what}/{other}" for other in range(size)], LIMIT)


@contextlib.contextmanager
def fake_ranks(rank: int, size: int) -> Iterator[None]:
    """This process as one of `size`, with collectives that carry nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    yield
    dist.destroy_process_group()


@contextlib.contextmanager
def launched(rank: int, size: int) -> Iterator[None]:
    """The environment variables that tell a Trainer its processes are already started."""
    own = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "RANK": str(rank), "WORLD_SIZE": str(size)}
    before = dict(os.environ)
    os.environ.update(own, MASTER_ADDR="127.0.0.1", MASTER_PORT="1", HF_HUB_OFFLINE="1")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def counted() -> Iterator[list[torch.Size]]:
    """Record the all_reduces of packed sums."""
    real = dist.all_reduce
    calls: list[torch.Size] = []

    def all_reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if tensor.dtype == torch.int64 and tensor.ndim == 2:
            calls.append(tensor.shape)
        return real(tensor, *args, **kwargs)

    dist.all_reduce = all_reduce
    try:
        yield calls
    finally:
        dist.all_reduce = real


def _work(connection: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        job, file, rank, size, seconds, args = pickle.loads(connection.recv_bytes())  # imports the job's module
        _tell(connection, "ready")
        connection.recv_bytes()
        answer: Any = None
        try:
            join(file, rank, size, seconds)
            _tell(connection, "joined")
        except Exception:
            dist.distributed_c10d._world.group_count = 0  # the number of the next group, which all have to agree on
            _tell(connection, Missed(traceback.format_exc()))
        if connection.recv_bytes() == b"go":
            try:
                answer = job(rank, size, *args)
            except MissedError:
                answer = Missed(traceback.format_exc())
            except Exception:
                answer = Failed(traceback.format_exc())
        with contextlib.suppress(Exception):
            dist.destroy_process_group()
        _tell(connection, answer)


def _tell(connection: Connection, what: Any) -> None:
    connection.send_bytes(pickle.dumps(what))


class Failed(str):
    """The traceback of a job that raised."""


class Missed(Failed):
    """The traceback of a process that did not find the others, at first or in a group that its job made."""


class Workers:
    """As many processes as the largest job so far needed; one that died is replaced by the next job."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.workers: list[tuple[Any, Connection]] = []
        self.folder = tempfile.TemporaryDirectory()
        self.jobs = 0

    def __call__(self, size: int, job: Callable[..., Any], *args: Any, seconds: float = 300) -> list[Any]:
        """Every rank's answer to `job`, `DIED` for one that didn't live to give it."""
        for _ in range(TRIES):
            self._hire(size)
            chosen = self.workers[:size]
            told = self._join(chosen, job, args, seconds)
            self._say(chosen, b"stop" if told else b"go")
            answers = [self._receive(worker) for worker in chosen]
            answers = told or answers
            if not any(isinstance(answer, Missed) for answer in answers):
                break
        failed = [f"rank {rank}: {answer}" for rank, answer in enumerate(answers) if isinstance(answer, Failed)]
        assert not failed, "\n".join(failed)
        return answers

    def _join(self, chosen: list[Any], job: Callable[..., Any], args: Any, seconds: float) -> list[Any]:
        """Hand the job out and make the group; nothing, or what each rank says where one missed the others."""
        self.jobs += 1
        file = str(Path(self.folder.name, f"job{self.jobs}"))
        for rank, (_, connection) in enumerate(chosen):
            connection.send_bytes(pickle.dumps((job, file, rank, len(chosen), seconds, args)))
        unready = [worker for worker in chosen if self._receive(worker) != "ready"]
        assert not unready, "some processes were not ready for the job"
        self._say(chosen, b"join")
        told = [self._receive(worker) for worker in chosen]
        return [] if all(answer == "joined" for answer in told) else told

    def _say(self, chosen: list[Any], what: bytes) -> None:
        for _, connection in chosen:
            connection.send_bytes(what)

    def _receive(self, worker: tuple[Any, Connection]) -> Any:
        """The worker's next message; one that is silent for too long is sent away, so that no answer comes late."""
        process, connection = worker
        try:
            if connection.poll(PATIENCE):
                return pickle.loads(connection.recv_bytes())
            process.kill()
            answer: Any = Failed(f"no answer in {PATIENCE} seconds")
        except EOFError:
            answer = DIED
        connection.close()
        return answer

    def _hire(self, size: int) -> None:
        self.workers = [worker for worker in self.workers if not worker[1].closed]
        while len(self.workers) < size:
            here, there = self.context.Pipe()
            process = self.context.Process(target=_work, args=(there,), daemon=True)
            process.start()
            there.close()
            self.workers.append((process, here))


run = Workers()
