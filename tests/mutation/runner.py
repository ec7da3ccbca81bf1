"""Runs tests on changed files, in a copy of the tree and in forks of one process.

Importing torch takes longer than most files of tests, so it is imported once, before any fork.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Imported before the first fork. Nothing of the package is among them, and none of them starts a thread.
IMPORTED = ["torch", "torch.distributed", "torchmetrics", "numpy", "hypothesis", "mpmath", "pytest", "typer.testing"]


class Runner:
    """Runs tests in a copy of the tree, each time in a fork of this process."""

    def __init__(self, tree: Path, **environment: str) -> None:
        self.tree, self.output = tree, tree / "output.txt"
        shutil.copytree(
            ROOT, tree, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git", ".venv", "build", "*_cache")
        )
        os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(tree), **environment}
        sys.path[:0] = [str(tree)]
        for name in IMPORTED:
            importlib.import_module(name)
        assert not any(name.startswith("xent_metrics") for name in sys.modules), "the package is imported by every fork"
        assert len(os.listdir("/proc/self/task")) == 1, "a fork after threads have run may hang"
        gc.freeze()  # else every collection in a fork goes over all of torch
        self._written = time.time()

    @contextlib.contextmanager
    def holding(self, module: str, text: str) -> Iterator[None]:
        """Within it the tree's module has this text. Its time is always a new one, so that no .pyc is taken for it."""
        path = self.tree / module
        before = path.read_text()
        try:
            self._write(path, text)
            yield
        finally:
            self._write(path, before)

    def _write(self, path: Path, text: str) -> None:
        self._written += 2
        path.write_text(text)
        os.utime(path, (self._written, self._written))

    def failure(self, tests: list[str], cpu_seconds: int = 300, seconds: float = 300) -> str:
        """The first test that fails, ``time`` if they take too long, or nothing if all pass."""
        child = os.fork()
        if child == 0:
            os._exit(self._run(tests, cpu_seconds))
        end = time.monotonic() + seconds
        while not (done := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):  # what it has started, too
            os.killpg(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(done[1] if done[0] else os.waitpid(child, 0)[1])
        if status in (0, 5):  # 5: there is none
            return ""
        named = re.search(r"^(?:FAILED|ERROR) (\S+)", self.output.read_text(errors="replace"), re.MULTILINE)
        return named[1] if named else "time" if status < 0 else f"exit status {status}"

    def _run(self, tests: list[str], cpu_seconds: int) -> int:
        import pytest

        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        os.chdir(self.tree)
        with self.output.open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow", *tests]))
