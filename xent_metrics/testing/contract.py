"""check_metric: one call that checks the contract of a metric, built in or a plugin's.

    from xent_metrics.testing import check_metric

    def test_focal_keeps_the_contract():
        check_metric(FocalCrossEntropy(gamma=2.0))

Each promise at the end of this file is checked on made-up scores. The error names the metric and the broken promise.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from xent_metrics.errors import XentMetricsError
from xent_metrics.metrics.pair_metric import PairMetric
from xent_metrics.plugins import plugins
from xent_metrics.scoring.scores import RowKind, TokenScores
from xent_metrics.sums import exact_sum
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.testing.host_sync import no_host_sync
from xent_metrics.wrappers.standard_error import StandardError

__all__ = ["check_metric", "made_up_batch", "no_host_sync"]

_BATCH, _LENGTH, _VOCAB_SIZE = 5, 8, 11


def check_metric(metric: TokenMetric, *, vocab_size: int | None = None, seed: int = 0) -> tuple[str, ...]:
    """Check that a metric keeps the contract; its own state is not touched.

    Args:
        metric: any `TokenMetric`, built as a user would.
        vocab_size: V of the made-up logits; by default the length of the metric's table of weights or bytes, or 11.
        seed: seeds the made-up scores and partitions.

    Returns:
        What could not be checked here: lm-eval's route, if lm-eval is not installed.

    Raises:
        AssertionError: a broken promise, with the metric's name and what differs.

    >>> from xent_metrics import get_metric
    >>> check_metric(get_metric("token_accuracy"))
    ()
    """
    metric = copy.deepcopy(metric)
    metric.reset()
    generator = torch.Generator().manual_seed(seed)
    try:
        logits, target = made_up_batch(metric, vocab_size=vocab_size, generator=generator)
        case = _Case(metric, logits, target, _scores(metric, logits, target), generator)
    except Exception as error:
        raise AssertionError(f"{metric.name} can't take made-up logits and targets: {_message(error)}") from error
    for promise, check in _PROMISES.items():
        try:
            check(case)
        except Exception as error:
            raise AssertionError(f"{metric.name} breaks a promise: {promise}. {_message(error)}") from error
    return () if find_spec("lm_eval") else ("lm-eval is not installed: the value by its gather and aggregation",)


@dataclass(frozen=True)
class _Case:
    metric: TokenMetric  # pristine: checks update copies
    logits: Tensor  # (B, T, V), or (B, T) for binary scores
    target: Tensor  # (B, T), some of them ignored
    first_scores: TokenScores  # (B, T), with every field
    generator: torch.Generator

    @property
    def scores(self) -> TokenScores:
        """Scores without any sums taken yet, so that the metric is asked for them each time."""
        return replace(self.first_scores)

    def new(self) -> TokenMetric:
        return copy.deepcopy(self.metric)

    def used(self) -> TokenMetric:
        """A copy of the metric, updated with the scores."""
        metric = self.new()
        metric.update(self.scores)
        return metric


def made_up_batch(
    metric: TokenMetric, *, vocab_size: int | None = None, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Logits ``(5, 8, V)`` and targets ``(5, 8)`` that suit the metric; about a fifth of the targets are ignored.

    For a metric of binary scores the logits, or probabilities, are those of the class 1 alone, ``(5, 8)``.
    """
    binary = metric.scoring_options().get("binary")
    if binary:
        vocab_size = 2
    if vocab_size is None:
        tables = [t for t in (*metric.scoring_options().values(), *metric.buffers()) if isinstance(t, Tensor)]
        vocab_size = next((len(table) for table in tables if table.ndim == 1), _VOCAB_SIZE)
    logits = 2 * torch.randn(_BATCH, _LENGTH, vocab_size, generator=generator)
    chance = torch.rand(2, _BATCH, _LENGTH, generator=generator)
    target = torch.randint(vocab_size, (_BATCH, _LENGTH), generator=generator)
    target = torch.where(chance[0] < 0.5, logits.argmax(-1), target)  # hits and misses
    ignored = chance[1] < 0.2
    ignored[0, 0], ignored[0, 1] = True, False
    if binary:
        logits = logits[..., 1] - logits[..., 0]
    if binary == "probabilities":
        logits = logits.sigmoid()
    return logits, torch.where(ignored, metric.ignore_index, target)


def _scores(metric: TokenMetric, logits: Tensor, target: Tensor, **options: Any) -> TokenScores:
    """The metric's own scores of the batch, with the fields that a host would add, of a row kind that it takes."""
    given = (logits, logits / 2 + logits.flip(-1)) if isinstance(metric, PairMetric) else logits
    scores = metric.score(given, target, **options)
    row_kind: RowKind = "token" if "token" in metric.row_kinds else min(metric.row_kinds)
    rows = torch.arange(scores.nll.numel(), device=scores.device).reshape(scores.nll.shape)
    return replace(scores, num_bytes=rows % 5, num_words=rows % 3, weight=(rows % 4 + 1) / 4, row_kind=row_kind)


def _finite(case: _Case) -> None:
    value: Any = case.metric.value_of(case.used().state)
    assert isinstance(value, Tensor), f"the value is a {type(value).__name__}, not a tensor"
    assert value.ndim == 0, f"the value has shape {tuple(value.shape)}"
    assert value.dtype == torch.float64, f"the value is {value.dtype}"
    assert bool(value.isfinite()), f"the value of ordinary scores is {value.item()}"


def _only_sums(case: _Case) -> None:
    metric = case.used()
    _same(case.new().value_of(metric.state), metric.compute(), "the value of the sums alone and the metric's")
    metric.reset()
    metric.update(case.scores)
    _same(metric.compute(), case.used().compute(), "the value after a reset and a new metric's")


def _partitions(case: _Case) -> None:
    rows, whole = case.scores.flatten(), case.metric.exact_sums(case.scores)
    for round_ in range(8):
        order = torch.randperm(len(rows), generator=case.generator)
        cuts = torch.randint(len(rows) + 1, (round_,), generator=case.generator).sort().values.tolist()
        pieces = [rows[order[a:b]] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
        states = [case.metric.exact_sums(piece) for piece in pieces]
        _same(_tree(states, case.generator), whole, f"the sums of {len(pieces)} shuffled pieces and of the whole")


def _tree(states: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """Merge two or three at random until one is left."""
    states = list(states)
    while len(states) > 1:
        order = torch.randperm(len(states), generator=generator).tolist()
        taken = order[: 2 + order[0] % 2]
        rest = [state for i, state in enumerate(states) if i not in taken]
        states = [*rest, exact_sum.merge(torch.stack([states[i] for i in taken]))]
    return states[0]


def _empty(case: _Case) -> None:
    empty = case.scores.flatten()[:0]
    _same(case.metric.exact_sums(empty), torch.zeros_like(case.metric.state), "the sums of no rows and zeros")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics warns of compute before update
        value = case.new().compute()
    assert bool(value.isnan()), f"the value of no rows is {value}"
    metric = case.used()
    metric.update(empty)
    _same(metric.state, case.used().state, "the state after an empty batch and before")
    metric.update(_scores(metric, case.logits, torch.full_like(case.target, metric.ignore_index)))
    _same(metric.compute(), case.used().compute(), "the value after an all-ignored batch and before")


def _ignored(case: _Case) -> None:
    scores, want = case.scores, case.metric.exact_sums(case.scores)

    def junk(value: Tensor) -> Tensor:
        ignored = (~scores.counted).reshape(*scores.counted.shape, *[1] * (value.ndim - scores.counted.ndim))
        filler = torch.nan if value.is_floating_point() else value.dtype == torch.bool or 3
        return torch.where(ignored, torch.tensor(filler, dtype=value.dtype), value)

    spoilt = replace(scores.map(junk), counted=scores.counted, invalid=scores.invalid)
    _same(case.metric.exact_sums(spoilt), want, "the sums with junk in ignored rows and without")
    logits = case.logits.clone()
    logits[~scores.counted] = torch.nan
    spoilt = _scores(case.metric, logits, case.target)
    _same(case.metric.exact_sums(spoilt), want, "the sums with nan in ignored rows' logits and without")


def _nan_row(case: _Case) -> None:
    spoilt, left_out = case.logits.clone(), case.scores.counted.clone()
    spoilt[0, 1], left_out[0, 1] = torch.nan, False
    metric, without = case.new(), case.new()
    metric.update(_scores(metric, spoilt, case.target))
    without.update(replace(case.scores, counted=left_out))
    value = metric.value_of(metric.state)
    assert bool(value.isnan()), f"the value with a row of nan is {value}"
    assert metric.counts()["nan"] == 1, f"a row of nan counts as {metric.counts()['nan']}"
    value = metric.value_of(metric.state, nan_policy="omit")
    _same(value, without.value_of(without.state), "the value of finite rows and without the row of nan")


def _names(case: _Case) -> None:
    metric = case.metric
    names = list(metric.layout.rows)
    for name in names:
        assert " at 0x" not in name, f"the sum name {name} holds an address, which differs between processes"
    for option, other in _variants(metric):
        if list(other.layout.rows) == names:
            same = torch.equal(other.exact_sums(_scores(other, case.logits, case.target)), case.used().state)
            assert same, f"option {option} changes what is added, but not the sums' names: {', '.join(names)}"


def _beside_others(case: _Case) -> None:
    for other in _others(case.metric):
        scores = _scores_for_both(case, other)
        if scores is None:
            continue
        alone = {metric: metric.exact_sums(scores.map(torch.clone)) for metric in (case.metric, other)}
        for first, second in ((case.metric, other), (other, case.metric)):
            shared = scores.map(torch.clone)  # as a collection gives its members one
            for metric in (first, second):
                what = f"the sums of {metric.name} beside {(second if metric is first else first).name} and alone"
                _same(metric.exact_sums(shared), alone[metric], what)


def _others(metric: TokenMetric) -> Iterator[TokenMetric]:
    """Every registered metric that its name alone builds, and the metric's own standard error."""
    for registered in plugins().metrics.values():
        if all(option.default is not option.empty for option in registered.options().values()):
            yield registered(ignore_index=metric.ignore_index)
    if metric.has_standard_error and not isinstance(metric, StandardError):
        yield StandardError(metric)


def _scores_for_both(case: _Case, other: TokenMetric) -> TokenScores | None:
    """Scores with all that both metrics need; None if there are no such scores."""
    known = case.metric.extra_scores()
    wanted = {name: score for name, score in other.extra_scores().items() if name not in known}
    try:
        scores = _scores(case.metric, case.logits, case.target, **({"extra_scores": wanted} if wanted else {}))
        other.exact_sums(scores.map(torch.clone))
    except XentMetricsError:
        return None
    return scores


def _variants(metric: TokenMetric) -> Iterator[tuple[str, TokenMetric]]:
    """The same metric with another value of one option, for each option that can be changed blindly."""
    change: dict[type, Callable[[Any], Any]] = {
        bool: lambda value: not value,
        int: lambda value: value + 1,
        float: lambda value: value / 2 + 0.125,
    }
    options = metric.given_options()
    for option, value in options.items():
        if type(value) in change and option != "ignore_index":
            try:
                other = type(metric)(**{**options, option: change[type(value)](value)})
            except (TypeError, ValueError):  # the option doesn't take that value
                continue
            yield option, other


def _forward(case: _Case) -> None:
    metric = case.new()
    for part in (case.scores[:2], case.scores[2:]):
        _same(metric(part), metric.value_of(metric.exact_sums(part)), "forward's value and the batch's own")
    _same(metric.state, case.used().state, "the state after forward and after update")


def _copies(case: _Case) -> None:
    original = case.used()
    twice = exact_sum.merge(torch.stack([original.state] * 2))
    ways: dict[str, Callable[[TokenMetric], Any]] = {
        "clone": lambda metric: metric.clone(),
        "deepcopy": copy.deepcopy,
        "pickle": lambda metric: pickle.loads(pickle.dumps(metric)),
    }
    for how, way in ways.items():
        copied = way(original)
        _same(copied.state, original.state, f"the state after {how} and before")
        _same(copied.compute(), original.compute(), f"the value after {how} and before")
        copied.update(case.scores)
        _same(copied.state, twice, f"an update after {how} and before it")
        _same(original.state, case.used().state, f"the state after updating what {how} made and before")


def _state_dict(case: _Case) -> None:
    metric, loaded = case.used(), case.new()
    assert not any("sums_" in key for key in metric.state_dict()), "sums are saved without being asked for"
    metric.persistent(True)
    file = io.BytesIO()
    torch.save(metric.state_dict(), file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    before = copy.deepcopy(saved)
    loaded.load_state_dict(saved)
    _same(loaded.state, metric.state, "the state loaded and saved")
    _same(loaded.compute(), metric.compute(), "the value loaded and saved")
    loaded.update(case.scores)
    for key, value in saved.items():
        _same(value, before[key], f"the checkpoint's {key} after an update and before")


def _casts(case: _Case) -> None:
    want = case.used()
    ways: dict[str, Callable[[TokenMetric], Any]] = {
        ".to(bfloat16)": lambda metric: metric.to(torch.bfloat16),
        ".half()": lambda metric: metric.half(),
        ".double()": lambda metric: metric.double(),
        ".set_dtype(float16)": lambda metric: metric.set_dtype(torch.float16),
        "the parent's .to(bfloat16)": lambda metric: nn.ModuleList([metric]).to(torch.bfloat16)[0],
        "the parent's .half()": lambda metric: nn.ModuleList([metric]).half()[0],
    }
    for how, way in ways.items():
        metric = way(case.used())
        _same(metric.state, want.state, f"the state after {how} and before")
        _same(metric.compute(), want.compute(), f"the value after {how} and before")
        again = metric.exact_sums(_scores(metric, case.logits, case.target))
        _same(again, want.state, f"what an update adds after {how} and before (keep float constants as integer bits)")


def _documents(case: _Case) -> None:
    merged, states = case.new(), []
    for row in range(_BATCH):
        document = case.new()
        document.update(case.scores[row])
        merged.merge_state(document)
        states.append(case.metric.exact_sums(case.scores[row]))
    want = case.used().compute()
    _same(case.metric.value_of(exact_sum.merge(torch.stack(states))), want, "the value by documents and by update")
    if find_spec("lm_eval"):
        _same(_by_lm_eval(case), want, "the value by lm-eval's gather and aggregation and by update")
    _same(merged.compute(), want, "the value by merge_state and by update")


def _by_lm_eval(case: _Case) -> Tensor:
    from xent_metrics.hosts.lm_eval.documents import DocumentValue, total_value

    documents = [DocumentValue.of(case.metric, case.scores[row]) for row in range(_BATCH)]
    gathered = [pickle.loads(pickle.dumps(document)) for document in documents]
    return torch.tensor(total_value(case.metric, gathered), dtype=torch.float64)


def _host_sync(case: _Case) -> None:
    metric = case.new()
    with no_host_sync() as device:
        _move(metric, device)
        logits = torch.empty(case.logits.shape, device=device)
        target = torch.empty(case.target.shape, dtype=torch.int64, device=device)
        metric.update(_scores(metric, logits, target))
        metric(_scores(metric, logits, target))
    assert metric.state.device.type == device.type, f"the state moved to {metric.state.device}"


def _move(metric: TokenMetric, device: torch.device) -> None:
    """Give the metric tensors without data on `device`, by `Module._apply`, read in torch 2.13."""
    metric._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))


_PROMISES: dict[str, Callable[[_Case], None]] = {
    "ordinary scores give a finite 0-d float64": _finite,
    "the value is a function of the sums alone": _only_sums,
    "any partition, order and merge tree gives the same bits": _partitions,
    "no rows change nothing and have the value nan": _empty,
    "ignored rows don't matter": _ignored,
    "a row of nan makes the value nan, counts once, and nan_policy='omit' leaves it out of every sum": _nan_row,
    "sum names carry every option that changes what is added": _names,
    "beside every registered metric, each keeps its value": _beside_others,
    "forward gives the batch's value and accumulates": _forward,
    "copies are equal and independent": _copies,
    "a state_dict brings the sums back, on request": _state_dict,
    "a change of dtype does no harm": _casts,
    "per-document sums merge to the same value": _documents,
    "an update never waits for the device, and its tensors are buffers": _host_sync,
}


def _same(got: Tensor, want: Tensor, what: str) -> None:
    assert torch.equal(got, want), f"{what} differ: {got} and {want}"


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
