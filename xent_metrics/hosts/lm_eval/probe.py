"""Checked, not hoped: which shortcuts of forward.py agree with the model's own forward.

At load, a few made-up windows run plainly and by each shortcut, one after the other; what doesn't agree, or raises, is
switched off with one line in the log. While requests run, the first batch that shares more than any before is checked
the same way (runner.py): a window or a position code that only long texts feel can't slip through.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...errors import InvalidInputError
from .forward import Forward
from .packing import Family, alone, behind
from .windows import Window, continuation_window

__all__ = ["distance", "probe", "tolerance"]

log = logging.getLogger(__name__)

_LENGTH = 40  # ids of the longest made-up window …
_WINDOW = 256  # … or a little more than a sliding window of at most this many
#: Relative error of hidden states (or logits) that rounding alone may make, other batch shapes being rounded otherwise.
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_LOOK_AHEAD = 1e-5  # … and that the ids behind may make, in any dtype: none is expected, the shapes being the same
_NLL_FACTOR = 10  # losses of the same hidden states agree better than these do
_INSTEAD = {
    "hidden": "the model's own logits are scored",
    "packing": "windows that branch run row by row",
    "caching": "shared beginnings aren't kept",
}


def tolerance(forward: Forward) -> float:
    """The largest `distance` that counts as agreement."""
    return _TOLERANCE.get(forward.dtype, 1e-1)


def distance(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖; nan where either isn't finite."""
    wanted = expected.double()
    return float((found.double() - wanted).norm() / wanted.norm())


def probe(forward: Forward, ids: Sequence[int], max_length: int) -> None:
    """Switch on what agrees, for windows made up of `ids`; a model that looks ahead is an error."""
    length = min(max_length, max(_LENGTH, forward.window + 16 if forward.window and forward.window <= _WINDOW else 0))
    windows = _windows(ids, length)
    _check_causal(forward, windows[0])
    _try(forward, "hidden", lambda: _hidden_error(forward, windows))
    if length >= _LENGTH:  # below that there is nothing worth sharing
        expected = {place: forward.states([alone(place, window)]) for place, window in enumerate(windows)}
        _try(forward, "packing", lambda: _error(forward, behind(0, windows, packing=True), expected))
        stem = length // 2 - 1
        _try(forward, "caching", lambda: _error(forward, behind(stem, windows, packing=forward.packing), expected))
    states = ", ".join(f"{name} {'on' if getattr(forward, name) else 'off'}" for name in _INSTEAD)
    log.info("xent-hf runs %s with %s", forward.name, states)


def _windows(ids: Sequence[int], length: int) -> list[Window]:
    """Two contexts that share their first half, each with three continuations, in windows of at most `length` ids."""
    drawn = torch.randint(len(ids), (length * 8,), generator=torch.Generator().manual_seed(0)).tolist()
    stream = iter([ids[i] for i in drawn])
    half = max(1, length // 2)
    first = [next(stream) for _ in range(half)]
    windows = []
    for _ in range(2):
        context = [*first, *(next(stream) for _ in range(max(0, length - half - 5)))]
        for size in (1, 3, 6):
            continuation = [next(stream) for _ in range(min(size, length))]
            windows.append(continuation_window(context, continuation, max_length=length))
    return windows


def _check_causal(forward: Forward, window: Window) -> None:
    """What a position predicts must not change with the ids behind it."""
    others = (*window.inputs[:-1], window.inputs[0] if window.inputs[-1] != window.inputs[0] else window.targets[0])
    seen = [
        forward.states([alone(0, Window(inputs, inputs))])[:-1] for inputs in (window.inputs, others) if len(inputs) > 1
    ]
    if seen and distance(*seen) > (tolerance(forward) if forward.rounds_by_neighbours else _LOOK_AHEAD):
        raise InvalidInputError(
            f"{forward.name} isn't causal: what it predicts changes with the tokens behind (relative change "
            f"{distance(*seen):.1e}). Loglikelihoods need a decoder, as in AutoModelForCausalLM with is_decoder=True"
        )


def _try(forward: Forward, name: str, error: Callable[[], float]) -> None:
    """Leave the shortcut on if its error is small; otherwise switch it off and say so."""
    setattr(forward, name, True)
    try:
        found = error()
        reason = f"its results are {found:.1e} off the model's own (at most {tolerance(forward):.0e})"
        agrees = found <= tolerance(forward)
    except Exception as raised:  # whatever a model does with arguments that it doesn't know
        reason, agrees = f"it raises {type(raised).__name__}: {str(raised).partition(chr(10))[0][:200]}", False
    if not agrees:
        setattr(forward, name, False)
        log.warning("xent-hf: %s is off for %s, so %s: %s", name, forward.name, _INSTEAD[name], reason)


def _hidden_error(forward: Forward, windows: Sequence[Window]) -> float:
    """The relative error of the nll by `lm_head` on hidden states against that of the model's own logits."""
    forward.find_head()
    rows = [alone(place, window) for place, window in enumerate(windows)]
    targets = [target for window in windows for target in window.targets]

    def nll() -> Tensor:
        return forward.score(torch.cat([forward.states([row]) for row in rows]), targets).nll

    by_hidden = nll()
    forward.hidden = False
    by_logits = nll()
    forward.hidden = True
    return _NLL_FACTOR * distance(by_hidden, by_logits)


def _error(forward: Forward, family: Family, expected: dict[int, Tensor]) -> float:
    """The relative error of a family's states against those of each window alone."""
    stem = forward.stem(family.stem) if family.stem else None
    places = [place for row in family.rows for place, _, _ in row.places]
    return distance(forward.states(family.rows, stem), torch.cat([expected[place] for place in places]))
