"""Windows of ids: what a model reads at once, and which of its predictions are scored.

Windows follow lm-eval's own definitions. In a rolled text every token is predicted once, and the last window has as much
context as fits. A continuation is predicted after its context, which is cut on the left if both don't fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lm_eval.utils import get_rolling_token_windows
from torch import Tensor

from xent_metrics.errors import InvalidInputError

__all__ = ["Window", "continuation_window", "padded", "rolling_windows"]


@dataclass(frozen=True)
class Window:
    """The ids that the model reads, and the `targets` that its last ``len(targets)`` positions predict."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]

    @property
    def scored(self) -> slice:
        """The positions that predict the targets."""
        return slice(len(self.inputs) - len(self.targets), len(self.inputs))


def rolling_windows(
    ids: Sequence[int], *, prefix_token: int, max_length: int, stride: int | None = None
) -> list[Window]:
    """The windows of a whole text, in which every id is predicted exactly once.

    Args:
        ids: the ids of the text.
        prefix_token: the id from which the first id of the text is predicted.
        max_length: the most ids of a window.
        stride: how many ids each window but the first predicts, after at least ``max_length − stride`` ids of context;
            by default as many as fit.

    >>> for window in rolling_windows([1, 2, 3, 4, 5], prefix_token=0, max_length=3):
    ...     print(window.inputs, window.targets)
    (0, 1, 2) (1, 2, 3)
    (2, 3, 4) (4, 5)
    >>> [window.targets for window in rolling_windows([1, 2, 3, 4, 5], prefix_token=0, max_length=3, stride=1)]
    [(1, 2, 3), (4,), (5,)]
    """
    context = 1 if stride is None else max_length - stride + 1
    pairs = get_rolling_token_windows(list(ids), prefix_token=prefix_token, max_seq_len=max_length, context_len=context)
    return [Window(tuple(inputs), tuple(targets)) for inputs, targets in pairs]


def continuation_window(context: Sequence[int], continuation: Sequence[int], *, max_length: int) -> Window:
    """The window of a continuation after its context; if both don't fit, the oldest ids are dropped, as in lm-eval.

    Raises:
        InvalidInputError: a continuation without ids or longer than `max_length`, or no context.

    >>> continuation_window([7, 8, 9], [1, 2], max_length=3)
    Window(inputs=(8, 9, 1), targets=(1, 2))
    """
    if not 1 <= len(continuation) <= max_length:
        raise InvalidInputError(
            f"a continuation has 1 to max_length={max_length} tokens; got {len(continuation)}. "
            + ("Score long texts with a rolling task, or raise max_length" if continuation else "Check doc_to_target")
        )
    if not context:
        raise InvalidInputError(
            "a continuation needs a context of at least one id, which predicts its first id. Use the tokenizer's BOS or EOS "
            "if there is no other context"
        )
    ids = [*context, *continuation][-(max_length + 1) :]
    return Window(tuple(ids[:-1]), tuple(continuation))


def padded(windows: Sequence[Window], *, length: int, fill: int) -> tuple[Tensor, Tensor]:
    """Ids and targets ``(B, length)``: ids padded on the right with `fill`, targets −100 wherever nothing is scored.

    >>> padded([Window((7, 8), (9,))], length=3, fill=0)
    (tensor([[7, 8, 0]]), tensor([[-100,    9, -100]]))
    """
    ids = torch.full((len(windows), length), fill)
    targets = torch.full((len(windows), length), -100)
    for row, window in enumerate(windows):
        ids[row, : len(window.inputs)] = torch.tensor(window.inputs)
        targets[row, window.scored] = torch.tensor(window.targets)
    return ids, targets
