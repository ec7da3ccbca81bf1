"""The card: its clock, memory, launches, waits and graphs. `DryCard` takes its place on a CPU."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

MIB = 2**20
Call = Callable[[], Any]


class Card:
    """The first CUDA device."""

    dry = False
    compiler = "inductor"

    def __init__(self, device: str = "cuda:0") -> None:
        self.device = torch.device(device)
        self._cache_filler = torch.empty(256 * MIB, dtype=torch.int8, device=self.device)  # several times the L2

    def describe(self) -> dict[str, Any]:
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "l2_mib": round(getattr(properties, "L2_cache_size", 0) / MIB, 1),
        }

    def free_bytes(self) -> int:
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0])

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def release(self) -> None:
        """Give freed memory back, after a call that ran out of it or at the end of a section."""
        torch.cuda.empty_cache()

    def elapsed_ms(self, call: Call) -> tuple[float, float]:
        """Milliseconds on the card, with a cold L2, and on the host until the call returned."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._cache_filler.zero_()
        start.record()
        before = time.perf_counter()
        call()
        host = time.perf_counter() - before
        end.record()
        self.synchronize()
        return start.elapsed_time(end), 1e3 * host

    def extra_mib(self, call: Call) -> float:
        """How far the call raises the peak of allocated memory, its result included."""
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        call()
        self.synchronize()
        return (torch.cuda.max_memory_allocated(self.device) - before) / MIB

    def launches(self, call: Call) -> Counter[str]:
        """The kernels and copies of one call, seen by the profiler."""
        found: Counter[str] = Counter()
        for _ in range(2):  # a first profile may start too late
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                call()
                self.synchronize()
            for event in profiler.events():
                if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
                    found["copies" if event.name.startswith(("Memcpy", "Memset")) else "kernels"] += 1
            if found:
                return found
        raise RuntimeError("the profiler saw no kernel on the card: is CUPTI there?")

    @contextmanager
    def no_waits(self) -> Iterator[None]:
        """Inside, what waits for the card raises."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def capture(self, call: Call) -> Call:
        """A function that replays the call as a CUDA graph and returns what the captured call returned."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            call()  # what a first call allocates or compiles can't be captured
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()

        def replay() -> Any:
            graph.replay()
            self.synchronize()
            return result

        return replay


class DryCard(Card):
    """A CPU in a card's place, to see that every section runs: its times say nothing about a card."""

    dry = True
    compiler = "eager"

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def describe(self) -> dict[str, Any]:
        return {"name": "cpu (dry)", "capability": None, "memory_gib": None, "multiprocessors": None, "l2_mib": None}

    def free_bytes(self) -> int:
        return 2**30

    def synchronize(self) -> None:
        """Nothing runs on its own here."""

    release = synchronize

    def elapsed_ms(self, call: Call) -> tuple[float, float]:
        start = time.perf_counter()
        call()
        taken = 1e3 * (time.perf_counter() - start)
        return taken, taken

    def extra_mib(self, call: Call) -> float:
        call()
        return 0.0

    def launches(self, call: Call) -> Counter[str]:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            call()
        return Counter(operators=sum(event.name.startswith("aten::") for event in profiler.events()))

    @contextmanager
    def no_waits(self) -> Iterator[None]:
        yield

    def capture(self, call: Call) -> Call:
        raise NotImplementedError("a CPU captures no CUDA graphs")


@dataclass(frozen=True)
class Timing:
    """Medians of one call."""

    ms: float  # on the card
    host_ms: float  # until the call returned
    extra_mib: float  # peak memory above what was there
    runs: int


def medians(card: Card, calls: dict[str, Call], *, repeats: int, deadline: float) -> dict[str, Timing | str]:
    """Timings of calls taken in turn; the error of a call that fails is in their place.

    After `deadline`, of `time.monotonic`, no more than three rounds are made.
    """
    found: dict[str, Timing | str] = {}
    memory: dict[str, float] = {}
    for name, call in calls.items():
        try:
            call()  # compiles
            memory[name] = card.extra_mib(call)
        except Exception as error:
            found[name] = describe_error(error)
        if name in found:  # outside of the except clause, whose traceback keeps tensors alive
            card.release()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in memory}
    for repeat in range(repeats):
        if repeat >= 3 and time.monotonic() > deadline:
            break
        for name, taken in times.items():
            taken.append(card.elapsed_ms(calls[name]))
    for name, taken in times.items():
        ms, host_ms = (statistics.median(each) for each in zip(*taken, strict=True))
        found[name] = Timing(ms, host_ms, memory[name], len(taken))
    return {name: found[name] for name in calls}


def describe_error(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
