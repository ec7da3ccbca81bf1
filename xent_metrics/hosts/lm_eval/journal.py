"""The results of a run's requests, written to a folder as they come, so that a run that was killed can go on.

    run.json              what the run is: its model, tasks and options
    results_….jsonl       one file per process and start; a line per request: a checksum, and JSON

A line is written in one call as soon as the model gives the result, and files are synced to the disk every second. Whatever
kills a process, at most its last line is lost or torn; a line that doesn't match its checksum is left out, and its request runs
again. Results are found by the request's own content: its kind and arguments.

Who syncs: nobody. Every process writes a file of its own, and reads those of all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm_eval.api.model import CacheHook

from xent_metrics.hosts.lm_eval.models.stored_results import result_of, stored

__all__ = ["Journal", "is_sampled", "request_key"]

log = logging.getLogger(__name__)

_SYNC_SECONDS = 1.0


def request_key(kind: str, arguments: Any) -> str | None:
    """The name of a request; None if its arguments, images say, aren't text and numbers.

    >>> request_key("loglikelihood", ("a", " b")) == request_key("loglikelihood", ["a", " b"])
    True
    """
    try:
        text = json.dumps([kind, arguments], sort_keys=True, ensure_ascii=False)
    except TypeError:
        return None
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def is_sampled(kind: str, arguments: Any) -> bool:
    """True for a generation that is drawn at random, whose result is none of the others with the same arguments."""
    options = arguments[1] if kind == "generate_until" and len(arguments) > 1 else {}
    return isinstance(options, Mapping) and bool(options.get("do_sample") or options.get("temperature"))


class Journal(CacheHook):  # type: ignore[misc]  # lm-eval is untyped
    """The results in a folder. lm-eval's models call `add_partial` with each result as it comes.

    Args:
        folder: the folder.
        rank: this process's rank, for the name of its file.

    Attributes:
        damaged: how many lines were left out.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        super().__init__(None)
        self.folder, self.damaged = folder, 0
        self._found = dict(self._read())
        name = f"results_{time.strftime('%Y%m%dT%H%M%S')}_{rank}_{os.urandom(4).hex()}.jsonl"
        self._file: int | None = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._synced = time.monotonic()

    def __len__(self) -> int:
        return len(self._found)

    def find(self, kind: str, arguments: Any) -> Any:
        """The result of a request; None if there is none, or if it is to be drawn at random."""
        line = None if is_sampled(kind, arguments) else self._found.get(request_key(kind, arguments) or "")
        return None if line is None else result_of(json.loads(line)["result"])

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        """Write the result of a request down, in place of one that it may have already."""
        key = request_key(attr, req)
        if key is None or is_sampled(attr, req):
            return
        try:
            line = json.dumps({"request": key, "result": stored(res)}, ensure_ascii=False)
        except TypeError as error:
            log.warning("resume: a result of %s isn't kept: %s", attr, error)
            return
        if self._found.get(key) != line:
            self._found[key] = line
            self._write(line)

    def close(self) -> None:
        """Sync and close this process's file."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None

    def _write(self, line: str) -> None:
        if self._file is None:
            return
        data = line.encode(errors="surrogatepass")
        try:
            _write_all(self._file, b"%08x %s\n" % (zlib.crc32(data), data))
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError as error:  # a full disk: the run itself goes on
            log.warning("resume: results aren't kept from here on: %s can't be written: %s", self.folder, error)
            os.close(self._file)
            self._file = None

    def _read(self) -> Iterator[tuple[str, str]]:
        """The lines of all files by their request; later ones replace earlier ones."""
        for path in sorted(self.folder.glob("results_*.jsonl")):
            for line in path.read_bytes().splitlines(keepends=True):
                if (found := _checked(line)) is None:
                    self.damaged += 1
                else:
                    yield found


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _checked(line: bytes) -> tuple[str, str] | None:
    """The request of a line and its JSON; None if it is torn, damaged, or somebody else's."""
    checksum, _, data = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(data):
        return None
    try:
        text = data.decode(errors="surrogatepass")
        return str(json.loads(text)["request"]), text
    except (KeyError, TypeError, ValueError):
        return None
