"""What a run found: a table per section on stdout, and all of it as one JSON."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from claims import Claims

from card.device import Card, describe_error

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch", "triton", "torchmetrics", "transformers", "lm_eval", "xent-metrics", "xent-metrics-triton", "liger-kernel",
    "quack-kernels", "cut-cross-entropy", "nvidia-cutlass-dsl",
)  # fmt: skip


class Section:
    """The rows of one section, and what of them failed.

    Args:
        name: its name.
        seconds: how long it may take; a section that has no time `left` skips its further cases.
    """

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.start = time.monotonic()
        self.deadline = self.start + seconds
        self.claims = Claims(name)
        self.rows: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []
        self.failed: list[str] = []
        self.warnings: list[str] = []
        self.error: str | None = None

    def run(self, function: Callable[..., None], *arguments: Any) -> None:
        """Fill the section; an exception ends this section alone, and warnings are kept: a plugin says so if it gives up."""
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            try:
                function(*arguments, self)
            except Exception as error:
                self.error = describe_error(error)
                self.failed.append(self.error)
        self.warnings = list(dict.fromkeys(f"{w.category.__name__}: {w.message!s:.300}" for w in seen))[:20]
        self.claims.show()
        for text in [f"failed: {self.error}"] * bool(self.error) + self.warnings:
            print(text)
        sys.stdout.flush()

    def note(self, what: str, **numbers: Any) -> None:
        """Numbers without a judgement."""
        self.rows.append({"what": what, **numbers})
        self.claims.note(what, shown(numbers))

    def check(self, what: str, held: bool, **numbers: Any) -> None:
        """Numbers of something that must hold."""
        self.rows.append({"what": what, "held": held, **numbers})
        self.claims.holds(what, held, shown(numbers))
        if not held:
            self.failed.append(what)

    def skip(self, what: str, why: str) -> None:
        self.skipped.append({"what": what, "why": why})
        self.claims.note(what, f"skipped: {why}")

    def out_of_time(self, what: str) -> bool:
        """True, and `what` skipped, if the section's time is over."""
        over = time.monotonic() > self.deadline
        if over:
            self.skip(what, "the section's time is over")
        return over

    def as_json(self) -> dict[str, Any]:
        names = ("error", "failed", "warnings", "skipped", "rows")
        return {"seconds": round(time.monotonic() - self.start, 2), **{name: getattr(self, name) for name in names}}


def shown(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {shown_number(value)}" for name, value in numbers.items())


def shown_number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def describe_run(card: Card) -> dict[str, Any]:
    """The card, the versions and the sources that a result belongs to."""
    return {
        "schema": 1,
        "dry": card.dry,
        "device": card.describe(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
            "driver": None if card.dry else driver(),
            **{name: installed(name) for name in PACKAGES},
        },
        "sources": sources(),
        "command": sys.argv[1:],
    }


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, IndexError, subprocess.SubprocessError):
        return None


def sources() -> str:
    """A digest of the package, its plugins and these files: the commit isn't known where only a copy of the tree is."""
    digest = hashlib.sha256()
    for folder in ("xent_metrics", "plugins", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def write(found: dict[str, Any], path: Path) -> None:
    """Write the JSON so that a run that is killed leaves its last whole version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(_finite(found), indent=1, allow_nan=False) + "\n")
    beside.replace(path)


def _finite(value: Any) -> Any:
    """JSON has no nan and no infinity: they become their names."""
    if isinstance(value, float) and value - value != 0:
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value
