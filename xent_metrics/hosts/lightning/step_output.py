"""Read a step's return value as scores, or as logits and targets.

    def validation_step(self, batch, batch_idx):
        logits = self(batch["ids"])
        return {"logits": logits[:, :-1], "targets": batch["ids"][:, 1:]}     # logits[t] scores targets[t]

A step returns a `TokenScores`, a mapping or object with `scores`, or a mapping or object with `logits` and `targets`
(also `target` or `labels`) and optionally `weight`. An adapter converts any other return value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring.scores import TokenScores

__all__ = ["StepBatch", "per_row", "read"]


class StepBatch(NamedTuple):
    """Arguments of a metric's `update`; `logits` may be a `TokenScores`, without a target."""

    logits: Any
    target: Any = None
    weight: Any = None

    @property
    def rows(self) -> Tensor:
        """A tensor with one element per row, in the shape of the rows."""
        if isinstance(self.logits, TokenScores):
            return self.logits.nll
        soft = self.target.ndim == self.logits.ndim  # a distribution per row
        rows: Tensor = self.target[..., 0] if soft else self.target
        return rows


def read(output: Any, *, shift: bool = False) -> StepBatch:
    """The batch in a step's output.

    Args:
        output: the step's return value.
        shift: pair logits[t] with targets[t + 1], for labels that equal the inputs.

    Raises:
        InvalidInputError: the output holds no scores, or no logits and targets.

    >>> read({"logits": torch.zeros(1, 2, 8), "target": torch.tensor([[2, 3]])}).target
    tensor([[2, 3]])
    >>> read({"logits": torch.zeros(1, 3, 8), "labels": torch.tensor([[1, 2, 3]])}, shift=True).target
    tensor([[2, 3]])
    """
    scores = output if isinstance(output, TokenScores) else _get(output, "scores")
    if isinstance(scores, TokenScores):
        return StepBatch(scores)
    logits, target, weight = _get(output, "logits"), _target(output), _get(output, "weight")
    if logits is None or target is None:
        raise InvalidInputError(
            f"the step returned {_shown(output)}; expected a TokenScores, a dict with `scores`, or a dict with `logits` and "
            "`targets` (or `labels`). Return one of these, or pass XentCallback(adapter=f), where f(module, output, batch) "
            "returns one"
        )
    if shift:
        logits, target = logits[..., :-1, :], target[..., 1:]
        weight = weight[..., 1:] if weight is not None and weight.ndim > 1 else weight
    batch = StepBatch(logits, target, weight)
    return batch._replace(weight=per_row(weight, batch.rows))


def per_row(weight: Any, rows: Tensor) -> Any:
    """Expand a weight per sequence, ``(B,)``, to a weight per row, ``(B, T)``."""
    if isinstance(weight, Tensor) and weight.ndim == 1 and rows.ndim > 1 and len(weight) == len(rows):
        return weight.reshape(-1, *[1] * (rows.ndim - 1)).expand(rows.shape)
    return weight


def _get(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _target(output: Any) -> Any:
    found = (_get(output, name) for name in ("targets", "target", "labels"))
    return next((target for target in found if target is not None), None)


def _shown(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a dict with the keys {', '.join(map(repr, output))}" if output else "an empty dict"
    return f"a tensor of shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
