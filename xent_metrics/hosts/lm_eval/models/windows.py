"""Windows of ids, and the batches that they are run in.

A `Window` is what the model reads and what its last positions predict: lm-eval's own definition of a rolling text
(every token predicted once, the last window with as much context as fits) and of a continuation after a context.

Batches come in one of two ways. Sorted (the default): longest first, each padded on the right to its longest, and
windows that read the same ids run once. In order: as the requests came, every window padded to one length, which are
the batches of a DataLoader that doesn't shuffle. A matmul's last bits may depend on the shape of its batch, so two
hosts agree to the last bit when they run the same windows in the same batches; in order makes that easy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from lm_eval.utils import get_rolling_token_windows
from torch import Tensor

from xent_metrics.errors import InvalidInputError

__all__ = ["Batch", "Window", "batches", "continuation_window", "padded", "rolling_windows"]


@dataclass(frozen=True)
class Window:
    """The ids that the model reads, and the `targets` that its last ``len(targets)`` positions predict."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]

    @property
    def scored(self) -> slice:
        """The positions whose logits score the targets."""
        return slice(len(self.inputs) - len(self.targets), len(self.inputs))


def rolling_windows(ids: Sequence[int], *, prefix: int, max_length: int, stride: int | None = None) -> list[Window]:
    """A whole text: every id predicted exactly once, from at most `max_length` ids, the first one from `prefix`.

    With a `stride` every window but the first predicts that many ids, behind ``max_length − stride`` or more.

    >>> for window in rolling_windows([1, 2, 3, 4, 5], prefix=0, max_length=3):
    ...     print(window.inputs, window.targets)
    (0, 1, 2) (1, 2, 3)
    (2, 3, 4) (4, 5)
    >>> [window.targets for window in rolling_windows([1, 2, 3, 4, 5], prefix=0, max_length=3, stride=1)]
    [(1, 2, 3), (4,), (5,)]
    """
    context = 1 if stride is None else max_length - stride + 1
    pairs = get_rolling_token_windows(list(ids), prefix_token=prefix, max_seq_len=max_length, context_len=context)
    return [Window(tuple(inputs), tuple(targets)) for inputs, targets in pairs]


def continuation_window(context: Sequence[int], continuation: Sequence[int], *, max_length: int) -> Window:
    """A continuation after its context, whose oldest ids are dropped where both don't fit (as lm-eval does).

    >>> continuation_window([7, 8, 9], [1, 2], max_length=3)
    Window(inputs=(8, 9, 1), targets=(1, 2))
    """
    if not 1 <= len(continuation) <= max_length:
        raise InvalidInputError(
            f"a continuation has 1 to max_length={max_length} tokens; got {len(continuation)}. "
            + ("Score long texts by a rolling task, or raise max_length" if continuation else "Check doc_to_target")
        )
    if not context:
        raise InvalidInputError(
            "a continuation needs a context of at least one id, which predicts its first; where there is none, it is the "
            "tokenizer's BOS or EOS"
        )
    ids = [*context, *continuation][-(max_length + 1) :]
    return Window(tuple(ids[:-1]), tuple(continuation))


def padded(windows: Sequence[Window], *, length: int, fill: int) -> tuple[Tensor, Tensor]:
    """Ids and targets ``(B, length)``; ids are filled up on the right, targets are -100 wherever nothing is scored.

    >>> padded([Window((7, 8), (9,))], length=3, fill=0)
    (tensor([[7, 8, 0]]), tensor([[-100,    9, -100]]))
    """
    ids = torch.full((len(windows), length), fill)
    targets = torch.full((len(windows), length), -100)
    for row, window in enumerate(windows):
        ids[row, : len(window.inputs)] = torch.tensor(window.inputs)
        targets[row, window.scored] = torch.tensor(window.targets)
    return ids, targets


@dataclass(frozen=True)
class Batch:
    """Padded ids ``(B, T)``, and for each row the places, in the list of windows, of those that it scores."""

    ids: Tensor
    places: list[list[int]]


def batches(
    windows: Sequence[Window], *, batch_size: int, fill: int, keep_order: bool, max_length: int
) -> Iterator[Batch]:
    """The windows in batches of at most `batch_size` rows, deterministic in the list of windows."""
    rows = [[place] for place in range(len(windows))] if keep_order else _shared_rows(windows)
    for start in range(0, len(rows), batch_size):
        places = rows[start : start + batch_size]
        first = [windows[row[0]] for row in places]
        length = max_length if keep_order else len(first[0].inputs)
        yield Batch(padded(first, length=length, fill=fill)[0], places)


def _shared_rows(windows: Sequence[Window]) -> list[list[int]]:
    """The places of windows that read the same ids, longest first; equal lengths by their ids."""
    by_inputs: dict[tuple[int, ...], list[int]] = {}
    for place, window in enumerate(windows):
        by_inputs.setdefault(window.inputs, []).append(place)
    return [by_inputs[inputs] for inputs in sorted(by_inputs, key=lambda ids: (-len(ids), ids))]
