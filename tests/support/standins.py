"""Backends that stand in for NCCL where there is no GPU."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

#: Without a backend for CPU tensors: gloo, which claims that it is for CUDA alone. Its time limit can be read.
CUDA_ONLY = "cudaonly"
#: Backends for CPU tensors that never raise and never wait: one never adds up, one does so later.
IDLE, LATE = "idle", "late"
#: The same that never adds up, for CUDA alone; its time limit can't be read.
IDLE_CUDA_ONLY = "idlecudaonly"
DELAY = 0.5  # seconds, of the late one


class Done(dist._Work):
    """Work that says it is done."""

    def wait(self, timeout: Any = None) -> bool:
        return True


class Idle(dist.ProcessGroup):
    """Collectives that return what they were given, as if it had been added up."""

    def allreduce(self, tensors: list[torch.Tensor], opts: Any = None) -> Done:
        return Done()


class Late(dist.ProcessGroup):
    """Collectives that return at once, and add up some time later."""

    def __init__(self, rank: int, size: int, gloo: Any) -> None:
        super().__init__(rank, size)
        self.gloo = gloo

    def allreduce(self, tensors: list[torch.Tensor], opts: Any = None) -> Done:
        def later() -> None:
            time.sleep(DELAY)
            self.gloo.allreduce(tensors).wait()

        threading.Thread(target=later).start()
        return Done()


def register() -> None:
    """Make the stand-ins known to torch, once in each process."""
    if CUDA_ONLY in dist.Backend.backend_list:
        return
    add = dist.Backend.register_backend
    add(CUDA_ONLY, dist.ProcessGroupGloo, devices=["cuda"])
    add(IDLE, _idle, devices=["cpu", "cuda"])
    add(LATE, _late, devices=["cpu", "cuda"])
    add(IDLE_CUDA_ONLY, _idle, devices=["cuda"])


def _idle(store: Any, rank: int, size: int, limit: timedelta) -> Idle:
    return Idle(rank, size)


def _late(store: Any, rank: int, size: int, limit: timedelta) -> Late:
    return Late(rank, size, dist.ProcessGroupGloo(store, rank, size, limit))
