"""Where in training a checkpoint is: its step, its tokens, and which runs are checkpoints of one training.

Said in the metadata of a run, or read from names: ``step1000``, ``checkpoint-1000``, ``epoch=0-step=1000.ckpt``, ``tokens4B``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xent_metrics.errors import ComparisonError

__all__ = ["Training", "step_of", "training_of"]

_STEPS = (
    re.compile(r"(?<![a-z])(?:global[_-]?)?step[=_-]?(\d+)(?!\d)", re.IGNORECASE),
    # not an argument that is a path: checkpoint=2024/weights
    re.compile(r"(?<![a-z])(?!checkpoint=\d+[/\\])(?:checkpoint|ckpt|iter)[=_-]?(\d+)(?!\d)", re.IGNORECASE),
)
_TOKENS = (
    re.compile(r"(?<![a-z_])tokens?[=_-]?(\d+(?:\.\d+)?)([KMBT]?)(?![a-z\d])", re.IGNORECASE),
    re.compile(r"(?<![a-z\d.])(\d+(?:\.\d+)?)([KMBT]?)[_-]?tok(?:en)?s?(?![a-z])", re.IGNORECASE),
)
_FACTORS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_MOST_DIGITS = 15  # a longer number is a date or a hash


@dataclass(frozen=True)
class Training:
    """The step and the tokens of a checkpoint, None if nothing says so, and the name of the training."""

    step: float | None
    tokens: float | None
    series: str


def training_of(name: str, results: Mapping[str, Any]) -> Training:
    """Where in training a run's model is.

    What `--metadata` says goes first: ``step``, ``tokens`` and ``series``. Otherwise the arguments of the model, its name
    and the run's own name are searched, in this order. Runs whose names differ in nothing but the numbers are one series.

    Args:
        name: of the run: its folder.
        results: what its results file says.

    >>> training_of("pythia/step1000-tokens2.1B", {})
    Training(step=1000.0, tokens=2100000000.0, series='pythia/step…-tokens…')
    >>> training_of("last", {"config": {"model_args": "pretrained=gpt,revision=step5"}})
    Training(step=5.0, tokens=None, series='last')
    """
    said = dict(_metadata(results))
    texts = [*_model(results), name]
    step = said.get("step", _first(_STEPS, texts))
    tokens = said.get("tokens", _first(_TOKENS, texts))
    return Training(step, tokens, str(said.get("series", _without_numbers(name))))


def step_of(folder: Path, model: str, results: Mapping[str, Any]) -> int:
    """The step of a checkpoint that must have one: `training_of`'s, or else the last number in the folder's or model's name.

    Args:
        folder: of the run.
        model: its model's name.
        results: what its results file says.

    Raises:
        ComparisonError: there is none.

    >>> step_of(Path("runs/checkpoint-2000"), "mine", {}), step_of(Path("runs/tonight"), "out/300", {})
    (2000, 300)
    """
    name = folder.resolve().name
    step = training_of(name, results).step
    if step is not None:
        return int(step)
    for text in (name, Path(model).name):
        if numbers := re.findall(r"\d+", text):
            return int(numbers[-1])
    raise ComparisonError(
        f"{folder}: no step in the metadata, in the model's arguments or name ({model}), or in the folder's name. Name folders "
        "like checkpoint-2000, or give the steps with --steps"
    )


def _metadata(results: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys of interest in the metadata, which lm-eval writes into every task's configuration."""
    configs = results.get("configs")
    for config in configs.values() if isinstance(configs, dict) else ():
        metadata = config.get("metadata") if isinstance(config, dict) else None
        if isinstance(metadata, dict):
            for key in ("step", "tokens"):
                if (number := _number(metadata.get(key))) is not None:
                    yield key, number
            if isinstance(metadata.get("series"), str):
                yield "series", metadata["series"]


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and value >= 0 else None


def _model(results: Mapping[str, Any]) -> Iterator[str]:
    config = results.get("config")
    arguments = config.get("model_args") if isinstance(config, dict) else None
    if isinstance(arguments, dict):
        arguments = ",".join(f"{key}={value}" for key, value in arguments.items())
    yield from (text for text in (arguments, results.get("model_name")) if isinstance(text, str))


def _first(patterns: tuple[re.Pattern[str], ...], texts: list[str]) -> float | None:
    """The number in the first text that has one, by the first pattern that finds one there."""
    for text in texts:
        for pattern in patterns:
            for found in pattern.finditer(text):
                if len(found[1]) <= _MOST_DIGITS:
                    suffix = found[2].upper() if pattern.groups > 1 else ""
                    return float(found[1]) * _FACTORS[suffix]
    return None


def _without_numbers(name: str) -> str:
    for pattern in (*_STEPS, *_TOKENS):
        name = pattern.sub(
            lambda found: found[0].replace(found[1] + (found[2] if found.re.groups > 1 else ""), "…"), name
        )
    return name
