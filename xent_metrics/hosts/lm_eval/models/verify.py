"""Switch on the shortcuts of `HFForward` that agree with the model's own forward: `verify`.

Before the first request is scored, a few made-up windows run plainly and then with each shortcut in turn. A shortcut that
disagrees or raises is switched off with one line in the log. Two runs never agree to the last bit, because other shapes are
rounded differently. The effect of rounding is measured on the same windows, in one batch under another implementation of
attention.

One check needs no allowance for rounding: within a row, the ids of one branch must not change what another predicts, in any
dtype. This finds recurrent models, whose branches no mask can separate, even if their error in bfloat16 could pass for rounding.

The checks go on while requests run (runner.py): the first batch that shares more than any batch before it is compared, too,
because a sliding window or a position code may only matter in long texts.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from xent_metrics.errors import InvalidInputError, PluginError
from xent_metrics.hosts.lm_eval.models.forward import Forward
from xent_metrics.hosts.lm_eval.models.hf_forward import HFForward
from xent_metrics.hosts.lm_eval.models.packing import PrefixGroup, Row, after, alone
from xent_metrics.hosts.lm_eval.models.progress import progress_bar
from xent_metrics.hosts.lm_eval.models.windows import Window, continuation_window
from xent_metrics.scoring.score import score_tokens

__all__ = ["check_causal", "distance", "tolerance", "verify"]

log = logging.getLogger(__name__)

_LENGTH = 40  # ids of the longest made-up window …
_WINDOW = 256  # … unless the model's sliding window is at most this long: then a little more than that
_LONG = 320  # ids of the windows for a plugin's context, which may compute attention in blocks of ids
#: Relative errors of hidden states (or logits) that pass for rounding: always, and at most if that much was measured.
_LEAST = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 4e-3}
_MOST = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_OF_ROUNDING = 2  # tolerance in units of the measured rounding: correct shortcuts differed by 0.2 to 0.9 of it
_UNMOVED = 1e-5  # the change that unseen ids may make, in any dtype: none is expected, since the shapes are the same
#: Relative errors of losses by the same head on the same hidden states: only the logits can be rounded differently.
_NLL_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 5e-4, torch.bfloat16: 2e-3}
#: Each shortcut's name in the log, and what happens without it.
_SHORTCUTS = {
    "hidden": ("hidden", "the model's own logits are scored"),
    "packing": ("packing", "windows that branch run row by row"),
    "caching": ("caching", "shared prefixes aren't cached"),
    "end_to_end": ("end_to_end", "rows are padded"),
    "context_on": ("forward_context", "the model runs without the plugin"),
}
_ALONE = "its results are {} off those of windows alone"


def tolerance(forward: Forward) -> float:
    """The largest `distance` that counts as agreement."""
    least, most = _LEAST.get(forward.dtype, 4e-3), _MOST.get(forward.dtype, 1e-1)
    return min(most, max(least, _OF_ROUNDING * forward.rounding))


def distance(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖; nan if either isn't finite."""
    wanted = expected.to("cpu").double()  # some devices have no float64
    return float((found.to("cpu").double() - wanted).norm() / wanted.norm())


def verify(forward: HFForward, ids: Sequence[int], max_length: int, *, quiet: bool = False) -> None:
    """Switch on the shortcuts that agree on windows made up of `ids`; a bar shows the progress unless `quiet`."""
    sliding = forward.window + 16 if forward.window and forward.window <= _WINDOW else 0
    length = _before_switch(forward, min(max_length, max(_LENGTH, sliding)))
    windows = _windows(ids, length)
    steps: list[Callable[[], None]] = [
        lambda: _verify_hidden(forward, windows),
        lambda: _verify_sharing(forward, windows, length),
        lambda: _verify_context(forward, ids, max_length),
    ]
    for step in progress_bar(steps, desc=f"xent-hf: checking {forward.name}", unit="check", hidden=quiet):
        step()
    states = ", ".join(
        f"{label} {'on' if getattr(forward, name) else 'off'}"
        for name, (label, _) in _SHORTCUTS.items()
        if name != "end_to_end" or forward.varlen
    )
    log.info("xent-hf runs %s with %s", forward.name, states)


def _verify_hidden(forward: HFForward, windows: Sequence[Window]) -> None:
    bound = _NLL_TOLERANCE.get(forward.dtype, 2e-3)
    off = "its losses are {} off the model's own"
    _try(forward, "hidden", _Check(off, lambda: _hidden_error(forward, (windows[0], windows[-1])), bound))


def _verify_sharing(forward: HFForward, windows: Sequence[Window], length: int) -> None:
    if length < _LENGTH:  # such windows share too little
        return
    expected = {place: forward.states([alone(place, window)]) for place, window in enumerate(windows)}
    forward.rounding = _rounding(forward, windows, expected)
    log.info(
        "xent-hf: in a batch instead of alone, the nll of a token moves by up to %.1e nats; invariant=true keeps its bits",
        _moved(forward, windows, expected),
    )
    bound = tolerance(forward)
    _try(
        forward, "packing",
        _Check(_ALONE, lambda: _error(forward, after(0, windows, packing=True), expected), bound),
        _Check("ids of one branch move what another predicts by {}", lambda: _leak(forward, windows), _UNMOVED),
    )  # fmt: skip
    group = after(length // 2 - 1, windows, packing=forward.packing)
    _try(forward, "caching", _Check(_ALONE, lambda: _error(forward, group, expected), bound))
    if forward.varlen:
        chains = [alone(place, window) for place, window in enumerate(windows)]
        _try(
            forward, "end_to_end",
            _Check(_ALONE, lambda: _error(forward, PrefixGroup((), chains), expected), bound),
            _Check("ids of one row move what another predicts by {}", lambda: _leak_of_rows(forward, chains), _UNMOVED),
        )  # fmt: skip


def _verify_context(forward: HFForward, ids: Sequence[int], max_length: int) -> None:
    try:
        if not forward.find_context():
            return
    except PluginError as error:
        log.warning(
            "xent-hf: forward_context is off for %s, so %s: %s", forward.name, _SHORTCUTS["context_on"][1], error
        )
        return
    off, bound = "its results are {} off the model's own", tolerance(forward)
    sizes = _context_sizes(forward, max_length)
    _try(
        forward,
        "context_on",
        *(_Check(off, partial(_context_error, forward, _windows(ids, size)), bound) for size in sizes),
    )


@dataclasses.dataclass(frozen=True)
class _Check:
    """`error()` is at most `bound`; otherwise `message` says what is wrong."""

    message: str
    error: Callable[[], float]
    bound: float


def _before_switch(forward: Forward, length: int) -> int:
    """At most the longest window with the original rotary frequencies."""
    return length if forward.rope_switch is None else min(length, forward.rope_switch.length)


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


def check_causal(forward: HFForward, ids: Sequence[int], max_length: int) -> None:
    """Raise `InvalidInputError` if what a position predicts changes with the ids after it."""
    window = _windows(ids, _before_switch(forward, min(max_length, _LENGTH)))[0]
    others = (*window.inputs[:-1], window.inputs[0] if window.inputs[-1] != window.inputs[0] else window.targets[0])
    seen = [
        forward.states([alone(0, Window(inputs, inputs))])[:-1] for inputs in (window.inputs, others) if len(inputs) > 1
    ]
    if seen and distance(*seen) > _unmoved(forward):  # a model that gives nan passes here
        raise InvalidInputError(
            f"{forward.name} isn't causal: its predictions change with the tokens after them (relative change "
            f"{distance(*seen):.1e}). Loglikelihoods need a decoder, as in AutoModelForCausalLM with is_decoder=True"
        )


def _unmoved(forward: HFForward) -> float:
    """The largest change that ids may make at positions that can't see them."""
    if forward.is_quantized:
        return max(_MOST.values())
    return _MOST.get(forward.dtype, 1e-1) if forward.rounds_by_neighbours else _UNMOVED


def _try(forward: HFForward, name: str, *checks: _Check) -> None:
    """Leave the shortcut on if it passes all checks; otherwise switch it off and log why."""
    setattr(forward, name, True)
    label, instead = _SHORTCUTS[name]
    reason = ""
    for check in checks:
        try:
            found = check.error()
        except Exception as raised:  # models raise all sorts of errors for arguments that they don't know
            reason = f"it raises {type(raised).__name__}: {str(raised).partition(chr(10))[0][:200]}"
        else:
            if not found <= check.bound:
                reason = f"{check.message.format(f'{found:.1e}')} (at most {check.bound:.0e})"
        if reason:
            setattr(forward, name, False)
            log.warning("xent-hf: %s is off for %s, so %s: %s", label, forward.name, instead, reason)
            return


def _hidden_error(forward: HFForward, windows: Sequence[Window]) -> float:
    """The relative error of the nll from `lm_head` on hidden states, compared with the model's own logits.

    Both are rounded to the model's dtype at every step. Scores scale and cap logits in float32, which is no error.
    """
    forward.find_head()
    assert forward.head is not None
    rows = [alone(place, window) for place, window in enumerate(windows)]
    target = torch.tensor([target for window in windows for target in window.targets])

    def nll(logits: Tensor) -> Tensor:
        return score_tokens(logits, target.to(logits.device)).nll

    states = torch.cat([forward.states([row]) for row in rows])
    by_hidden = nll(forward.head.logits(states, forward.dtype))
    forward.hidden = False
    by_logits = nll(torch.cat([forward.states([row]) for row in rows]))
    forward.hidden = True
    return distance(by_hidden, by_logits)


def _context_sizes(forward: HFForward, max_length: int) -> list[int]:
    """How many ids the windows for a plugin's context have: many, and few enough for no mask of a sliding window."""
    most = _before_switch(forward, min(max_length, _LONG))
    return sorted({most, min(most, forward.window - 1)}) if forward.window and forward.window > 1 else [most]


def _context_error(forward: HFForward, windows: Sequence[Window]) -> float:
    """The relative error of hidden states (or logits) within a plugin's context, of two windows in a batch."""
    rows = [alone(place, Window(windows[place].inputs, windows[place].inputs)) for place in (0, -1)]
    forward.states(rows[-1:])  # a context that can be entered only once raises in the next line
    found = forward.states(rows)
    forward.context_on = False
    expected = forward.states(rows)
    forward.context_on = True
    return distance(found, expected)


def _rounding(forward: HFForward, windows: Sequence[Window], expected: dict[int, Tensor]) -> float:
    """How far padding, one batch and attention by plain matmuls move the same windows; 0 if the model can't do that."""
    rows = [alone(place, window) for place, window in enumerate(windows)]
    try:
        with sdpa_kernel(SDPBackend.MATH):
            found = distance(forward.states(rows), torch.cat([expected[place] for place in range(len(rows))]))
    except Exception:  # models raise all sorts of errors for a batch
        return 0.0
    return found if found >= 0 else 0.0  # nan


def _moved(forward: HFForward, windows: Sequence[Window], expected: dict[int, Tensor]) -> float:
    """How many nats the nll of a token moves at most if the windows run in one batch; nan if the model can't do that."""
    rows = [alone(place, window) for place, window in enumerate(windows)]
    targets = [window.targets for window in windows]
    own = torch.cat([forward.score(expected[place], ids).nll for place, ids in enumerate(targets)])
    try:
        together = forward.score(forward.states(rows), [target for ids in targets for target in ids]).nll
    except Exception:  # models raise all sorts of errors for a batch
        return math.nan
    return float((together - own).abs().max())


def _error(forward: HFForward, group: PrefixGroup, expected: dict[int, Tensor]) -> float:
    """The relative error of a group's states, compared with each window alone."""
    cache = forward.prefix_cache(group.prefix) if group.prefix else None
    places = [place for row in group.rows for place, _, _ in row.places]
    return distance(forward.states(group.rows, cache), torch.cat([expected[place] for place in places]))


def _leak(forward: HFForward, windows: Sequence[Window]) -> float:
    """Leakage between branches of a row; 0 if below measured noise.

    No id can see a later one, so a change that the last branch makes before it is noise, for example of experts, which run the
    ids of a batch together.
    """
    row = max(after(0, windows, packing=True).rows, key=lambda row: len(row.branches))
    starts = [start for start, _ in row.branches]
    predicting = torch.tensor([column for _, columns, _ in row.places for column in columns])
    expected = forward.states([row])

    def moved(start: int, end: int, seen: Tensor) -> float:
        found = forward.states([_changed(row, start, end)])
        return distance(found[seen], expected[seen])

    sees = row.sees()[predicting]
    first, second, last = starts[1], starts[2], starts[-1]
    leak = moved(first, second, (predicting >= second) & ~sees[:, first:second].any(dim=-1))
    return leak if not leak <= _OF_ROUNDING * moved(last, len(row), predicting < last) else 0.0


def _leak_of_rows(forward: HFForward, rows: Sequence[Row]) -> float:
    """Leakage between rows that run end to end, as `_leak`: no row can see a later one."""
    expected = forward.states(rows)
    scored = [sum(len(targets) for _, _, targets in row.places) for row in rows]

    def moved(changed: int, seen: slice) -> float:
        others = [_changed(row, 0, len(row)) if i == changed else row for i, row in enumerate(rows)]
        return distance(forward.states(others)[seen], expected[seen])

    leak = moved(0, slice(scored[0], None))
    return leak if not leak <= _OF_ROUNDING * moved(len(rows) - 1, slice(-scored[-1])) else 0.0


def _changed(row: Row, start: int, end: int) -> Row:
    """The row with other ids in the columns from `start` to `end`."""
    tokens = list(row.tokens)
    for column in range(start, end):
        tokens[column] = tokens[0] if tokens[column] != tokens[0] else tokens[1]
    return dataclasses.replace(row, tokens=tokens)
