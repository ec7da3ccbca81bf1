"""`xent` run in children of this process, which has loaded its modules already, with faults.

A child that is forked starts at once, so that a command can be run, or killed, hundreds of times.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import xent_metrics.analysis.report
import xent_metrics.doctor.mending
import xent_metrics.doctor.tasks
import xent_metrics.explain.metrics
import xent_metrics.hosts.lm_eval.command
import xent_metrics.hosts.lm_eval.rescored_run
import xent_metrics.view.export
import xent_metrics.view.site  # noqa: F401  # none of which the children have to load
from xent_metrics.cli import main
from xent_metrics.plugins import plugins

plugins()

__all__ = ["Ended", "forked", "start", "status_of"]


class Ended(NamedTuple):
    """How a command ended, and what it printed on stderr."""

    status: int
    error: str


def forked(*arguments: object, stdout: str = os.devnull, prepare: Callable[[], None] = lambda: None) -> Ended:
    """Run `xent` with these arguments in a child.

    Args:
        *arguments: of the command.
        stdout: where its output goes.
        prepare: what goes wrong, called in the child after its streams were opened.
    """
    read, write = os.pipe()
    child = start(lambda: _command(arguments, stdout, write, prepare))
    os.close(write)
    with os.fdopen(read, encoding="utf-8", errors="replace") as errors:
        error = errors.read()
    return Ended(status_of(child), error)


def start(work: Callable[[], None]) -> int:
    """Do some work in a child; returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        work()
        status = 0
    except SystemExit as done:
        status = done.code if isinstance(done.code, int) else int(done.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def status_of(child: int, seconds: float = 60) -> int:
    """The exit status of a child, the negative number of a signal if one ended it; kills what takes too long."""
    until = time.monotonic() + seconds
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(child, 9)
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(ended[1])


def _command(arguments: tuple[object, ...], stdout: str, errors: int, prepare: Callable[[], None]) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(stdout, os.O_WRONLY), 1)
    os.dup2(errors, 2)
    os.close(errors)
    prepare()
    kept = sys.stdin, sys.stdout, sys.stderr  # which would close the streams that are opened now
    sys.stdin, sys.stdout, sys.stderr = _opened(0, "r"), _opened(1, "w"), _opened(2, "w")
    sys.argv = ["xent", *map(str, arguments)]
    try:
        main()
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()  # as at the end of every process, where an error would be printed
        del kept


def _opened(number: int, mode: str) -> Any:
    try:
        return os.fdopen(number, mode, encoding="utf-8", closefd=False)
    except OSError:
        return None
