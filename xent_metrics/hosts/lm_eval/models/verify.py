"""Checked, not hoped: which shortcuts of forward.py agree with the model's own forward.

At load, a few made-up windows run plainly and by each shortcut, one after the other; what doesn't agree, or raises, is
switched off with one line in the log. Two runs never agree to the last bit, since other shapes are rounded otherwise; how
far that goes is measured, not guessed: by the same windows under another implementation of the attention, and in one
batch. What needs no allowance gets none: in one row, the ids of a branch must not move what another predicts, whatever
the dtype. A recurrent model, which no mask keeps apart, shows there, though in bfloat16 its error may pass for rounding.

While requests run, the first batch that shares more than any before is checked the same way (runner.py): a window or a
position code that only long texts feel can't slip through.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval.models.forward import Forward
from xent_metrics.hosts.lm_eval.models.packing import Family, alone, behind
from xent_metrics.hosts.lm_eval.models.windows import Window, continuation_window
from xent_metrics.scoring.score import score_tokens

__all__ = ["distance", "probe", "tolerance"]

log = logging.getLogger(__name__)

_LENGTH = 40  # ids of the longest made-up window …
_WINDOW = 256  # … or a little more than a sliding window of at most this many
_LONG = 320  # ids of the one for plugins' layers, whose attention may go by blocks of ids
#: Relative error of hidden states (or logits) that passes for rounding where less, and at most, was measured.
_LEAST = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 4e-3}
_MOST = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_OF_ROUNDING = 2  # times what was measured: shortcuts were seen to differ by 0.2 to 0.9 of it
_UNMOVED = (
    1e-5  # … that ids which a position can't see may make, in any dtype: none is expected, the shapes being the same
)
#: … and of losses by the same head on the same hidden states, of which only the logits may be rounded otherwise.
_NLL_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 5e-4, torch.bfloat16: 2e-3}
_INSTEAD = {
    "hidden": "the model's own logits are scored",
    "packing": "windows that branch run row by row",
    "caching": "shared beginnings aren't kept",
    "layers": "torch computes all of the layers",
}


def tolerance(forward: Forward) -> float:
    """The largest `distance` that counts as agreement."""
    least, most = _LEAST.get(forward.dtype, 4e-3), _MOST.get(forward.dtype, 1e-1)
    return min(most, max(least, _OF_ROUNDING * forward.rounding))


def distance(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖; nan where either isn't finite."""
    wanted = expected.double()
    return float((found.double() - wanted).norm() / wanted.norm())


def probe(forward: Forward, ids: Sequence[int], max_length: int) -> None:
    """Switch on what agrees, for windows made up of `ids`; a model that looks ahead is an error."""
    length = min(max_length, max(_LENGTH, forward.window + 16 if forward.window and forward.window <= _WINDOW else 0))
    if forward.turn is not None:
        length = min(length, forward.turn.length)
    windows = _windows(ids, length)
    _check_causal(forward, windows[0])
    bound = _NLL_TOLERANCE.get(forward.dtype, 2e-3)
    off = "its losses are {} off the model's own"
    _try(forward, "hidden", _Check(off, lambda: _hidden_error(forward, windows), bound))
    if length >= _LENGTH:  # below that there is nothing worth sharing
        expected = {place: forward.states([alone(place, window)]) for place, window in enumerate(windows)}
        forward.rounding = _rounding(forward, windows, expected)
        off, bound = "its results are {} off those of windows alone", tolerance(forward)
        _try(
            forward, "packing",
            _Check(off, lambda: _error(forward, behind(0, windows, packing=True), expected), bound),
            _Check("ids of one branch move what another predicts by {}", lambda: _leak(forward, windows), _UNMOVED),
        )  # fmt: skip
        stem = length // 2 - 1
        family = behind(stem, windows, packing=forward.packing)
        _try(forward, "caching", _Check(off, lambda: _error(forward, family, expected), bound))
    if forward.has_backends:
        off = "its results are {} off those of the model's own"
        _try(
            forward, "layers",
            *(_Check(off, partial(_layers_error, forward, _windows(ids, size)), tolerance(forward))
              for size in _sizes(forward, max_length)),
        )  # fmt: skip
    states = ", ".join(f"{name} {'on' if getattr(forward, name) else 'off'}" for name in _INSTEAD)
    log.info("xent-hf runs %s with %s", forward.name, states)


@dataclasses.dataclass(frozen=True)
class _Check:
    """What `error` gives is at most `bound`; `says` what it means if not."""

    says: str
    error: Callable[[], float]
    bound: float


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
    if seen and distance(*seen) > _unmoved(forward):  # of a model that gives nan, nothing is said here
        raise InvalidInputError(
            f"{forward.name} isn't causal: what it predicts changes with the tokens behind (relative change "
            f"{distance(*seen):.1e}). Loglikelihoods need a decoder, as in AutoModelForCausalLM with is_decoder=True"
        )


def _unmoved(forward: Forward) -> float:
    """The largest change that ids which a position can't see may make."""
    if forward.is_quantized:
        return max(_MOST.values())
    return _MOST.get(forward.dtype, 1e-1) if forward.rounds_by_neighbours else _UNMOVED


def _try(forward: Forward, name: str, *checks: _Check) -> None:
    """Leave the shortcut on if its errors are small; otherwise switch it off and say so."""
    setattr(forward, name, True)
    reason = ""
    for check in checks:
        try:
            found = check.error()
        except Exception as raised:  # whatever a model does with arguments that it doesn't know
            reason = f"it raises {type(raised).__name__}: {str(raised).partition(chr(10))[0][:200]}"
        else:
            if not found <= check.bound:
                reason = f"{check.says.format(f'{found:.1e}')} (at most {check.bound:.0e})"
        if reason:
            setattr(forward, name, False)
            log.warning("xent-hf: %s is off for %s, so %s: %s", name, forward.name, _INSTEAD[name], reason)
            return


def _hidden_error(forward: Forward, windows: Sequence[Window]) -> float:
    """The relative error of the nll by `lm_head` on hidden states against that of the model's own logits.

    In the model's dtype to the last step, as its own logits are: that ours are scaled and capped in float32 is no error.
    """
    forward.find_head()
    rows = [alone(place, window) for place, window in enumerate(windows)]
    target = torch.tensor([target for window in windows for target in window.targets])

    def nll(logits: Tensor) -> Tensor:
        return score_tokens(logits, target.to(logits.device)).nll

    by_hidden = nll(forward.logits(torch.cat([forward.states([row]) for row in rows])))
    forward.hidden = False
    by_logits = nll(torch.cat([forward.states([row]) for row in rows]))
    forward.hidden = True
    return distance(by_hidden, by_logits)


def _sizes(forward: Forward, max_length: int) -> list[int]:
    """How many ids the windows have that try plugins' layers: many, and few enough for a sliding window to need no mask."""
    most = min(max_length, _LONG if forward.turn is None else forward.turn.length)
    return sorted({most, min(most, forward.window - 1)}) if forward.window and forward.window > 1 else [most]


def _layers_error(forward: Forward, windows: Sequence[Window]) -> float:
    """The relative error of hidden states (or logits) by plugins' layers, of two windows in a batch."""
    forward.find_layers()
    rows = [alone(place, Window(windows[place].inputs, windows[place].inputs)) for place in (0, -1)]
    found = forward.states(rows)
    forward.layers = False
    expected = forward.states(rows)
    forward.layers = True
    return distance(found, expected)


def _rounding(forward: Forward, windows: Sequence[Window], expected: dict[int, Tensor]) -> float:
    """How far the same windows lie apart in one batch, padded, with attention by plain matmuls; 0 where that can't be had."""
    rows = [alone(place, window) for place, window in enumerate(windows)]
    try:
        with sdpa_kernel(SDPBackend.MATH):
            found = distance(forward.states(rows), torch.cat([expected[place] for place in range(len(rows))]))
    except Exception:  # whatever a model does with a batch
        return 0.0
    return found if found >= 0 else 0.0  # nan


def _error(forward: Forward, family: Family, expected: dict[int, Tensor]) -> float:
    """The relative error of a family's states against those of each window alone."""
    stem = forward.stem(family.stem) if family.stem else None
    places = [place for row in family.rows for place, _, _ in row.places]
    return distance(forward.states(family.rows, stem), torch.cat([expected[place] for place in places]))


def _leak(forward: Forward, windows: Sequence[Window]) -> float:
    """How far a branch's other ids move what later branches predict; 0 where the last one's move earlier ones as far.

    No id can see a later one: what those move is rounding, as of experts that run the ids of a batch together.
    """
    row = max(behind(0, windows, packing=True).rows, key=lambda row: len(row.branches))
    starts = [start for start, _ in row.branches]
    predicting = torch.tensor([column for _, columns, _ in row.places for column in columns])
    expected = forward.states([row])

    def moved(start: int, end: int, seen: Tensor) -> float:
        tokens = list(row.tokens)
        for column in range(start, end):
            tokens[column] = tokens[0] if tokens[column] != tokens[0] else tokens[1]
        found = forward.states([dataclasses.replace(row, tokens=tokens)])
        return distance(found[seen], expected[seen])

    sees = row.sees()[predicting]
    first, second, last = starts[1], starts[2], starts[-1]
    leak = moved(first, second, (predicting >= second) & ~sees[:, first:second].any(dim=-1))
    return leak if not leak <= _OF_ROUNDING * moved(last, len(row), predicting < last) else 0.0
