"""Switch on the shortcuts of `HFForward` that agree with the model's own forward: `verify`.

Before the first request is scored, a few made-up windows run plainly and then with each shortcut in turn. A shortcut that
disagrees or raises is switched off with one line in the log. Two runs never agree to the last bit, because other shapes are
rounded differently. In half precision, the effect of rounding is measured on two of the windows: their embeddings are moved by as
much as one more rounding could move them, and torch's attention runs as plain products. The smaller effect counts.

One check needs no allowance for rounding: within a row, the ids of one branch must not change what another predicts, in any
dtype. This finds recurrent models, whose branches no mask can separate, even if their error in bfloat16 could pass for rounding.

The checks go on while requests run (runner.py): the first batch that shares more than any batch before it is compared, too,
because a sliding window or a position code may only matter in long texts.

What was found is a `Verdict`. For a model that was loaded by its name, verdict_file.py keeps it for the next start.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from xent_metrics.errors import InvalidInputError, PluginError
from xent_metrics.hosts.lm_eval.models.forward import Forward
from xent_metrics.hosts.lm_eval.models.hf_forward import HFForward
from xent_metrics.hosts.lm_eval.models.packing import Row, after, alone
from xent_metrics.hosts.lm_eval.models.progress import progress_bar
from xent_metrics.hosts.lm_eval.models.sizes import is_out_of_memory
from xent_metrics.hosts.lm_eval.models.windows import Window, continuation_window
from xent_metrics.scoring.score import score_tokens

__all__ = ["SHORTCUTS", "Verdict", "check_causal", "distance", "restore", "tolerance", "verify"]

log = logging.getLogger(__name__)

_LENGTH = 32  # ids of the longest made-up window …
_WINDOW = 256  # … unless the model's sliding window is at most this long: then a little more than that
_LONG = 288  # ids of the window for a plugin's context, which may compute attention in blocks of ids
_SIZES = (3, 6)  # ids of the continuations of each context
#: Relative errors of hidden states (or logits) that pass for rounding: always, and at most if that much was measured.
_LEAST = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 4e-3}
_MOST = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_OF_ROUNDING = 2  # what passes for it, in units of what was measured: correct shortcuts differed by at most 1.05 of it
_UNMOVED = 1e-5  # the change that unseen ids may make, in any dtype: none is expected, since the shapes are the same
#: Relative errors of losses by the same head on the same hidden states: only the logits can be rounded differently.
_NLL_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 5e-4, torch.bfloat16: 2e-3}
#: Each shortcut's name in the log, and what happens without it.
SHORTCUTS = {
    "hidden": ("hidden", "the model's own logits are scored"),
    "packing": ("packing", "windows that branch run row by row"),
    "caching": ("caching", "shared prefixes aren't cached"),
    "end_to_end": ("end_to_end", "rows are padded"),
    "context_on": ("forward_context", "the model runs without the plugin"),
}
#: Errors by which a model's code refuses arguments, at every start.
_OF_THE_CODE = (
    TypeError, ValueError, LookupError, AttributeError, AssertionError, NotImplementedError, InvalidInputError
)  # fmt: skip
#: What is wrong, with a place for the figure.
_OFF_ALONE = "its results are {} off those of windows alone"

#: What is wrong if an error is above a bound, that error, and the bound.
_Finding = tuple[str, float, float]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What `verify` found of a model.

    Attributes:
        on: the shortcuts that are on, by their attributes of `HFForward`.
        off: why others are off. A shortcut that the model or the plugins don't offer is in neither.
        rounding: as in `Forward`.
        moved: how many nats the nll of a token moved at most in a batch or a shared row; nan if the model runs neither.
        lasting: whether it holds for the next start, too. It doesn't if anything failed that may work then, such as an
            allocation of memory.
    """

    on: Sequence[str]
    off: Mapping[str, str]
    rounding: float
    moved: float
    lasting: bool = True


def tolerance(forward: Forward) -> float:
    """The largest `distance` that counts as agreement."""
    least, most = _LEAST.get(forward.dtype, 4e-3), _MOST.get(forward.dtype, 1e-1)
    return min(most, max(least, _OF_ROUNDING * forward.rounding))


def distance(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖; nan if either isn't finite."""
    wanted = expected.to("cpu").double()  # some devices have no float64
    return float((found.to("cpu").double() - wanted).norm() / wanted.norm())


def verify(forward: HFForward, ids: Sequence[int], max_length: int, *, quiet: bool = False) -> Verdict:
    """Switch on the shortcuts that agree on windows made up of `ids`; a bar shows the progress unless `quiet`."""
    sliding = forward.window + 16 if forward.window and forward.window <= _WINDOW else 0
    length = _before_switch(forward, min(max_length, max(_LENGTH, sliding)))
    checks = _Checks(forward, _windows(ids, length))
    steps: list[Callable[[], None]] = [
        checks.verify_hidden,
        checks.measure_rounding,
        lambda: checks.verify_sharing(length),
        lambda: checks.verify_context(ids, max_length),
    ]
    for step in progress_bar(steps, desc=f"xent-hf: checking {forward.name}", unit="check", hidden=quiet):
        step()
    verdict = checks.verdict()
    _log(forward, verdict)
    return verdict


def restore(forward: HFForward, verdict: Verdict) -> None:
    """Switch on what an earlier `verify` of the same model did.

    Raises:
        InvalidInputError, PluginError: the model or a plugin doesn't offer a shortcut that was on.
    """
    if "hidden" in verdict.on:
        forward.find_head()
    gave = "context_on" in {*verdict.on, *verdict.off}
    if forward.find_context() is not gave:
        raise InvalidInputError(f"{'no' if gave else 'a'} plugin gives a forward_context, other than before")
    forward.rounding = verdict.rounding
    for name in SHORTCUTS:
        setattr(forward, name, name in verdict.on)
    _log(forward, verdict)


def _log(forward: HFForward, verdict: Verdict) -> None:
    for name, reason in verdict.off.items():
        label, instead = SHORTCUTS[name]
        log.warning("xent-hf: %s is off for %s, so %s: %s", label, forward.name, instead, reason)
    if not math.isnan(verdict.moved):
        log.info(
            "xent-hf: in a batch or a shared row instead of alone, the nll of a token moves by up to %.1e nats; "
            "invariant=true keeps its bits",
            verdict.moved,
        )
    states = ", ".join(
        f"{label} {'on' if name in verdict.on else 'off'}"
        for name, (label, _) in SHORTCUTS.items()
        if name != "end_to_end" or forward.varlen
    )
    log.info("xent-hf runs %s with %s", forward.name, states)


class _Checks:
    """The checks of one model, in the order in which they are made. Each runs with the shortcuts that those before it left on.

    Args:
        forward: runs the model.
        windows: what is compared, as `_windows` makes them up.
    """

    def __init__(self, forward: HFForward, windows: Sequence[Window]) -> None:
        self.forward, self.windows = forward, windows
        self.few = [0, len(windows) - 1]  # the places of two windows that differ in context and length
        self.alone: dict[int, Tensor] = {}  # the states of each window in a row of its own
        self.together: list[tuple[list[int], Tensor]] = []  # places of windows that ran with others, and their states
        self.off: dict[str, str] = {}
        self.lasting = True

    def verdict(self) -> Verdict:
        on = tuple(name for name in SHORTCUTS if getattr(self.forward, name))
        moved = max((self._moved(places, states) for places, states in self.together), default=math.nan)
        return Verdict(on, self.off, self.forward.rounding, moved, self.lasting)

    def verify_hidden(self) -> None:
        states: dict[str, dict[int, Tensor]] = {}

        def compare() -> Iterator[_Finding]:
            self.forward.find_head()
            states["hidden"] = self._states_alone(self.few)
            self.forward.hidden = False
            states["logits"] = self._states_alone(self.few)
            self.forward.hidden = True
            error = self._nll_error(states["hidden"], states["logits"])
            yield "its losses are {} off the model's own", error, _NLL_TOLERANCE.get(self.forward.dtype, 2e-3)

        self._try("hidden", compare)
        self.alone = states.get("hidden" if self.forward.hidden else "logits", {})
        self.alone |= self._states_alone([place for place in range(len(self.windows)) if place not in self.alone])

    def _nll_error(self, states: Mapping[int, Tensor], logits: Mapping[int, Tensor]) -> float:
        """The relative error of the nll from `lm_head` on hidden states, compared with the model's own logits.

        Both are rounded to the model's dtype at every step. Scores scale and cap logits in float32, which is no error.
        """
        head, dtype = self.forward.head, self.forward.dtype
        assert head is not None

        def nll(logits: Tensor) -> Tensor:
            return score_tokens(logits, torch.tensor(self._targets(self.few), device=logits.device)).nll

        return distance(nll(head.logits(_joined(states, self.few), dtype)), nll(_joined(logits, self.few)))

    def measure_rounding(self) -> None:
        """Run two windows in one batch, in half precision also with more rounding: of embeddings, and in torch's attention."""
        rows, own = self._rows(self.few), _joined(self.alone, self.few)
        try:
            self.together.append((self.few, self.forward.states(rows)))
            if self.forward.dtype in (torch.float32, torch.float64):  # their tolerance doesn't depend on it
                return
            errors = []
            for more in self._more_rounding():
                with more:
                    errors.append(distance(self.forward.states(rows), own))
            self.forward.rounding = min((error for error in errors if error > 0), default=0.0)  # without nan
        except Exception as raised:  # models raise all sorts of errors for a batch
            self._note(raised)

    def _more_rounding(self) -> Iterator[AbstractContextManager[Any]]:
        yield _rounded_embeddings(self.forward)
        if self.forward.attention == "sdpa":
            yield sdpa_kernel(SDPBackend.MATH)

    def verify_sharing(self, length: int) -> None:
        if length < _LENGTH:  # such windows share too little
            return
        self._try("packing", self._compare_packed)
        self._try("caching", lambda: self._compare_cached(length // 2 - 1))
        if self.forward.varlen:
            self._try("end_to_end", self._compare_end_to_end)

    def _compare_packed(self) -> Iterator[_Finding]:
        rows = after(0, self.windows, packing=True).rows
        states = [self.forward.states([row]) for row in rows]
        yield _OFF_ALONE, self._error(rows, torch.cat(states)), tolerance(self.forward)
        row, own = max(zip(rows, states, strict=True), key=lambda pair: len(pair[0].branches))
        yield "ids of one branch move what another predicts by {}", _leak(self.forward, row, own), _UNMOVED

    def _compare_cached(self, prefix: int) -> Iterator[_Finding]:
        group = after(prefix, self.windows, packing=self.forward.packing)
        states = self.forward.states(group.rows, self.forward.prefix_cache(group.prefix))
        yield _OFF_ALONE, self._error(group.rows, states), tolerance(self.forward)

    def _compare_end_to_end(self) -> Iterator[_Finding]:
        rows = self._rows(range(len(self.windows)))
        states = self.forward.states(rows)
        yield _OFF_ALONE, self._error(rows, states), tolerance(self.forward)
        yield "ids of one row move what another predicts by {}", _leak_of_rows(self.forward, rows, states), _UNMOVED

    def _error(self, rows: Sequence[Row], states: Tensor) -> float:
        """The relative error of the states of rows, compared with each window alone."""
        places = [place for row in rows for place, _, _ in row.places]
        error = distance(states, _joined(self.alone, places))
        if error <= tolerance(self.forward):
            self.together.append((places, states))
        return error

    def _moved(self, places: Sequence[int], states: Tensor) -> float:
        """How many nats the nll of a token of the windows moves at most if they have these states."""
        found, own = (
            self.forward.score(each, self._targets(places)).nll for each in (states, _joined(self.alone, places))
        )
        return float((found - own).abs().max())

    def verify_context(self, ids: Sequence[int], max_length: int) -> None:
        try:
            if self.forward.find_context():
                self._try("context_on", lambda: self._compare_context(ids, max_length))
        except PluginError as error:
            self.off["context_on"] = str(error)
            self._note(error)

    def _compare_context(self, ids: Sequence[int], max_length: int) -> Iterator[_Finding]:
        """A long window, and a batch of two short ones, within a plugin's context and without it."""
        for size in _context_sizes(self.forward, max_length):
            inputs = _windows(ids, size)[-1].inputs
            long, short, shorter = (
                alone(0, Window(part, part)) for part in (inputs, inputs[: 1 + size // 4], inputs[: 1 + size // 8])
            )
            states = {}
            for self.forward.context_on in (False, True):
                found = [self.forward.states(rows) for rows in ([long], [short, shorter])]
                states[self.forward.context_on] = torch.cat(found)
            yield (
                "its results are {} off the model's own",
                distance(states[True], states[False]),
                tolerance(self.forward),
            )

    def _try(self, name: str, compare: Callable[[], Iterator[_Finding]]) -> None:
        """Leave the shortcut on if nothing that is found is above its bound; otherwise switch it off and keep why."""
        setattr(self.forward, name, True)
        try:
            for message, found, bound in compare():
                if not found <= bound:
                    self.off[name] = f"{message.format(f'{found:.1e}')} (at most {bound:.0e})"
                    break
        except Exception as raised:  # models raise all sorts of errors for arguments that they don't know
            self.off[name] = f"it raises {type(raised).__name__}: {str(raised).partition(chr(10))[0][:200]}"
            self._note(raised)
        setattr(self.forward, name, name not in self.off)

    def _note(self, raised: Exception) -> None:
        """A verdict lasts only if every error follows from the model's code."""
        of_the_code = isinstance(raised, _OF_THE_CODE) or type(raised) is RuntimeError  # as for tensors of other shapes
        self.lasting &= of_the_code and not is_out_of_memory(raised)

    def _rows(self, places: Sequence[int]) -> list[Row]:
        """Each window in a row of its own."""
        return [alone(place, self.windows[place]) for place in places]

    def _targets(self, places: Sequence[int]) -> list[int]:
        return [target for place in places for target in self.windows[place].targets]

    def _states_alone(self, places: Sequence[int]) -> dict[int, Tensor]:
        return {place: self.forward.states([row]) for place, row in zip(places, self._rows(places), strict=True)}


@contextmanager
def _rounded_embeddings(forward: HFForward) -> Iterator[None]:
    """Within it, each number of the ids' embeddings is moved as by one more rounding to the model's dtype.

    Rounding moves a number by at most a half to a quarter of `eps`, depending on its digits.
    """
    draw, most = torch.Generator().manual_seed(0), torch.finfo(forward.dtype).eps * 3 / 8

    def moved(module: Any, given: Any, output: Tensor) -> Tensor:
        factor = 1 + most * (2 * torch.rand(output.shape, generator=draw) - 1)
        return (output.float() * factor.to(output.device)).to(output.dtype)

    hook = forward.embedding.register_forward_hook(moved)
    try:
        yield
    finally:
        hook.remove()


def _joined(states: Mapping[int, Tensor], places: Sequence[int]) -> Tensor:
    return torch.cat([states[place] for place in places])


def _before_switch(forward: Forward, length: int) -> int:
    """At most the longest window with the original rotary frequencies."""
    return length if forward.rope_switch is None else min(length, forward.rope_switch.length)


def _windows(ids: Sequence[int], length: int) -> list[Window]:
    """Two contexts that share their first half, each with two continuations, in windows of at most `length` ids."""
    drawn = torch.randint(len(ids), (length * 8,), generator=torch.Generator().manual_seed(0)).tolist()
    stream = iter([ids[i] for i in drawn])
    half = max(1, length // 2)
    first = [next(stream) for _ in range(half)]
    windows = []
    for _ in range(2):
        context = [*first, *(next(stream) for _ in range(max(0, length - half - _SIZES[-1] + 1)))]
        for size in _SIZES:
            continuation = [next(stream) for _ in range(min(size, length))]
            windows.append(continuation_window(context, continuation, max_length=length))
    return windows


def _context_sizes(forward: HFForward, max_length: int) -> list[int]:
    """How many ids the windows for a plugin's context have: many, and few enough for no mask of a sliding window."""
    most = _before_switch(forward, min(max_length, _LONG))
    return sorted({most, min(most, forward.window - 1)}) if forward.window and forward.window > 1 else [most]


def _leak(forward: HFForward, row: Row, states: Tensor) -> float:
    """Leakage between the branches of a row whose states are known; 0 if below measured noise.

    No id can see a later one, so a change that the last branch makes before it is noise, for example of experts, which run the
    ids of a batch together.
    """
    starts = [start for start, _ in row.branches]
    predicting = torch.tensor([column for _, columns, _ in row.places for column in columns])

    def moved(start: int, end: int, seen: Tensor) -> float:
        found = forward.states([_changed(row, start, end)])
        return distance(found[seen], states[seen])

    sees = row.sees()[predicting]
    first, second, last = starts[1], starts[2], starts[-1]
    leak = moved(first, second, (predicting >= second) & ~sees[:, first:second].any(dim=-1))
    return _above_noise(leak, lambda: moved(last, len(row), predicting < last))


def _leak_of_rows(forward: HFForward, rows: Sequence[Row], states: Tensor) -> float:
    """Leakage between rows that run end to end, as `_leak`: no row can see a later one."""
    scored = [sum(len(targets) for _, _, targets in row.places) for row in rows]

    def moved(changed: int, seen: slice) -> float:
        others = [_changed(row, 0, len(row)) if i == changed else row for i, row in enumerate(rows)]
        return distance(forward.states(others)[seen], states[seen])

    return _above_noise(moved(0, slice(scored[0], None)), lambda: moved(len(rows) - 1, slice(-scored[-1])))


def _above_noise(leak: float, noise: Callable[[], float]) -> float:
    """The leak; 0 if it passes for noise, which is measured only if there is something to explain."""
    return leak if leak <= _UNMOVED or not leak <= _OF_ROUNDING * noise() else 0.0


def _changed(row: Row, start: int, end: int) -> Row:
    """The row with other ids in the columns from `start` to `end`."""
    tokens = list(row.tokens)
    for column in range(start, end):
        tokens[column] = tokens[0] if tokens[column] != tokens[0] else tokens[1]
    return dataclasses.replace(row, tokens=tokens)


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
