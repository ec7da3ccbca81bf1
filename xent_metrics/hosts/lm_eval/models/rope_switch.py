"""Rotary positions whose frequencies depend on the longest window of a batch: `RopeSwitch`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["RopeSwitch"]

_SWITCHING = ("longrope", "dynamic")


@dataclass(frozen=True)
class RopeSwitch:
    """The length beyond which RoPE scaling changes the frequencies of the whole batch.

    Attributes:
        length: the longest window with the original frequencies.
        once: True if all longer windows use the same other frequencies (LongRoPE), False if each length has its own
            (dynamic NTK).
    """

    length: int
    once: bool

    @classmethod
    def of(cls, config: Any) -> RopeSwitch | None:
        """The switch that a model's configuration describes; None if its frequencies never change."""
        found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        kinds = [found, *(value for value in found.values() if isinstance(value, Mapping))]  # one for each layer type
        by_type = {kind.get("rope_type", kind.get("type")): kind for kind in kinds}
        switching = [name for name in _SWITCHING if name in by_type]
        if not switching:
            return None
        lengths = [by_type[name].get("original_max_position_embeddings") for name in switching]
        lengths += [
            getattr(config, name, None) for name in ("original_max_position_embeddings", "max_position_embeddings")
        ]
        return cls(min(length for length in lengths if length), once=switching == ["longrope"])
