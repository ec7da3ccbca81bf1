"""The promises of a metric's contract, each a function that raises an AssertionError where a metric breaks it."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from xent_metrics.errors import XentMetricsError
from xent_metrics.plugins import plugins
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.sums import exact_sum
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.testing.case import BATCH, Case, own_scores, same
from xent_metrics.testing.host_sync import no_host_sync
from xent_metrics.wrappers.standard_error import StandardError

__all__ = ["PROMISES", "by_lm_eval"]


def finite(case: Case) -> None:
    """Ordinary scores give a finite 0-d float64."""
    value: Any = case.metric.value_of(case.used().state)
    assert isinstance(value, Tensor), f"the value is a {type(value).__name__}, not a tensor"
    assert value.ndim == 0, f"the value has shape {tuple(value.shape)}"
    assert value.dtype == torch.float64, f"the value is {value.dtype}"
    assert bool(value.isfinite()), f"the value of ordinary scores is {value.item()}"


def only_sums(case: Case) -> None:
    """The value is a function of the sums alone."""
    metric = case.used()
    same(case.new().value_of(metric.state), metric.compute(), "the value of the sums alone and the metric's")
    metric.reset()
    metric.update(case.scores)
    same(metric.compute(), case.used().compute(), "the value after a reset and a new metric's")


def exact_merge(case: Case) -> None:
    """Any partition, order and merge tree gives the same bits."""
    rows, whole = case.scores.flatten(), case.metric.exact_sums(case.scores)
    for round_ in range(8):
        order = torch.randperm(len(rows), generator=case.generator)
        cuts = torch.randint(len(rows) + 1, (round_,), generator=case.generator).sort().values.tolist()
        pieces = [rows[order[a:b]] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
        states = [case.metric.exact_sums(piece) for piece in pieces]
        same(_tree(states, case.generator), whole, f"the sums of {len(pieces)} shuffled pieces and of the whole")


def _tree(states: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """Merge two or three at random until one is left."""
    states = list(states)
    while len(states) > 1:
        order = torch.randperm(len(states), generator=generator).tolist()
        taken = order[: 2 + order[0] % 2]
        rest = [state for i, state in enumerate(states) if i not in taken]
        states = [*rest, exact_sum.merge(torch.stack([states[i] for i in taken]))]
    return states[0]


def empty(case: Case) -> None:
    """No rows change nothing and have the value nan."""
    empty = case.scores.flatten()[:0]
    same(case.metric.exact_sums(empty), torch.zeros_like(case.metric.state), "the sums of no rows and zeros")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics warns of compute before update
        value = case.new().compute()
    assert bool(value.isnan()), f"the value of no rows is {value}"
    metric = case.used()
    metric.update(empty)
    same(metric.state, case.used().state, "the state after an empty batch and before")
    metric.update(own_scores(metric, case.logits, torch.full_like(case.target, metric.ignore_index)))
    same(metric.compute(), case.used().compute(), "the value after an all-ignored batch and before")


def ignored_rows(case: Case) -> None:
    """Ignored rows don't matter."""
    scores, want = case.scores, case.metric.exact_sums(case.scores)

    def junk(value: Tensor) -> Tensor:
        ignored = (~scores.counted).reshape(*scores.counted.shape, *[1] * (value.ndim - scores.counted.ndim))
        filler = torch.nan if value.is_floating_point() else value.dtype == torch.bool or 3
        return torch.where(ignored, torch.tensor(filler, dtype=value.dtype), value)

    spoilt = replace(scores.map(junk), counted=scores.counted, invalid=scores.invalid)
    same(case.metric.exact_sums(spoilt), want, "the sums with junk in ignored rows and without")
    logits = case.logits.clone()
    logits[~scores.counted] = torch.nan
    spoilt = own_scores(case.metric, logits, case.target)
    same(case.metric.exact_sums(spoilt), want, "the sums with nan in ignored rows' logits and without")


def nan_row(case: Case) -> None:
    """A row of nan makes the value nan, counts once, and nan_policy='omit' leaves it out of every sum."""
    spoilt, left_out = case.logits.clone(), case.scores.counted.clone()
    spoilt[0, 1], left_out[0, 1] = torch.nan, False
    metric, without = case.new(), case.new()
    metric.update(own_scores(metric, spoilt, case.target))
    without.update(replace(case.scores, counted=left_out))
    value = metric.value_of(metric.state)
    assert bool(value.isnan()), f"the value with a row of nan is {value}"
    assert metric.counts()["nan"] == 1, f"a row of nan counts as {metric.counts()['nan']}"
    value = metric.value_of(metric.state, nan_policy="omit")
    same(value, without.value_of(without.state), "the value of finite rows and without the row of nan")


def sum_names(case: Case) -> None:
    """Sum names carry every option that changes what is added."""
    metric = case.metric
    names = list(metric.layout.rows)
    for name in names:
        assert " at 0x" not in name, f"the sum name {name} holds an address, which differs between processes"
    for option, other in _variants(metric):
        if list(other.layout.rows) == names:
            same = torch.equal(other.exact_sums(own_scores(other, case.logits, case.target)), case.used().state)
            assert same, f"option {option} changes what is added, but not the sums' names: {', '.join(names)}"


def beside_others(case: Case) -> None:
    """Beside every registered metric, each keeps its value."""
    for other in _others(case.metric):
        scores = _scores_for_both(case, other)
        if scores is None:
            continue
        alone = {metric: metric.exact_sums(scores.map(torch.clone)) for metric in (case.metric, other)}
        for first, second in ((case.metric, other), (other, case.metric)):
            shared = scores.map(torch.clone)  # as a collection gives its members one
            for metric in (first, second):
                what = f"the sums of {metric.name} beside {(second if metric is first else first).name} and alone"
                same(metric.exact_sums(shared), alone[metric], what)


def _others(metric: TokenMetric) -> Iterator[TokenMetric]:
    """Every registered metric that its name alone builds, and the metric's own standard error."""
    for registered in plugins().metrics.values():
        if all(option.default is not option.empty for option in registered.options().values()):
            yield registered(ignore_index=metric.ignore_index)
    if metric.has_standard_error and not isinstance(metric, StandardError):
        yield StandardError(metric)


def _scores_for_both(case: Case, other: TokenMetric) -> TokenScores | None:
    """Scores with all that both metrics need; None if there are no such scores."""
    known = case.metric.extra_scores()
    wanted = {name: score for name, score in other.extra_scores().items() if name not in known}
    try:
        scores = own_scores(case.metric, case.logits, case.target, **({"extra_scores": wanted} if wanted else {}))
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


def forward(case: Case) -> None:
    """Forward gives the batch's value and accumulates."""
    metric = case.new()
    for part in (case.scores[:2], case.scores[2:]):
        same(metric(part), metric.value_of(metric.exact_sums(part)), "forward's value and the batch's own")
    same(metric.state, case.used().state, "the state after forward and after update")


def copies(case: Case) -> None:
    """Copies are equal and independent."""
    original = case.used()
    twice = exact_sum.merge(torch.stack([original.state] * 2))
    ways: dict[str, Callable[[TokenMetric], Any]] = {
        "clone": lambda metric: metric.clone(),
        "deepcopy": copy.deepcopy,
        "pickle": lambda metric: pickle.loads(pickle.dumps(metric)),
    }
    for how, way in ways.items():
        copied = way(original)
        same(copied.state, original.state, f"the state after {how} and before")
        same(copied.compute(), original.compute(), f"the value after {how} and before")
        copied.update(case.scores)
        same(copied.state, twice, f"an update after {how} and before it")
        same(original.state, case.used().state, f"the state after updating what {how} made and before")


def state_dict(case: Case) -> None:
    """A state_dict brings the sums back, on request."""
    metric, loaded = case.used(), case.new()
    assert not any("sums_" in key for key in metric.state_dict()), "sums are saved without being asked for"
    metric.persistent(True)
    file = io.BytesIO()
    torch.save(metric.state_dict(), file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    before = copy.deepcopy(saved)
    loaded.load_state_dict(saved)
    same(loaded.state, metric.state, "the state loaded and saved")
    same(loaded.compute(), metric.compute(), "the value loaded and saved")
    loaded.update(case.scores)
    for key, value in saved.items():
        same(value, before[key], f"the checkpoint's {key} after an update and before")


def dtype_casts(case: Case) -> None:
    """A change of dtype does no harm."""
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
        same(metric.state, want.state, f"the state after {how} and before")
        same(metric.compute(), want.compute(), f"the value after {how} and before")
        again = metric.exact_sums(own_scores(metric, case.logits, case.target))
        same(again, want.state, f"what an update adds after {how} and before (keep float constants as integer bits)")


def documents(case: Case) -> None:
    """Per-document sums merge to the same value."""
    merged, states = case.new(), []
    for row in range(BATCH):
        document = case.new()
        document.update(case.scores[row])
        merged.merge_state(document)
        states.append(case.metric.exact_sums(case.scores[row]))
    want = case.used().compute()
    same(case.metric.value_of(exact_sum.merge(torch.stack(states))), want, "the value by documents and by update")
    if find_spec("lm_eval"):
        same(by_lm_eval(case), want, "the value by lm-eval's gather and aggregation and by update")
    same(merged.compute(), want, "the value by merge_state and by update")


def by_lm_eval(case: Case) -> Tensor:
    """The value that lm-eval gets of documents, each of one sequence."""
    from xent_metrics.hosts.lm_eval.documents import DocumentValue, total_value

    documents = [DocumentValue.of(case.metric, case.scores[row]) for row in range(BATCH)]
    gathered = [pickle.loads(pickle.dumps(document)) for document in documents]
    return torch.tensor(total_value(case.metric, gathered), dtype=torch.float64)


def never_waits(case: Case) -> None:
    """An update never waits for the device, and its tensors are buffers."""
    metric = case.new()
    with no_host_sync() as device:
        _move(metric, device)
        logits = torch.empty(case.logits.shape, device=device)
        target = torch.empty(case.target.shape, dtype=torch.int64, device=device)
        metric.update(own_scores(metric, logits, target))
        metric(own_scores(metric, logits, target))
    assert metric.state.device.type == device.type, f"the state moved to {metric.state.device}"


def _move(metric: TokenMetric, device: torch.device) -> None:
    """Give the metric tensors without data on `device`, by `Module._apply`, read in torch 2.13."""
    metric._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))


#: What each metric promises, and the function that checks it.
PROMISES: dict[str, Callable[[Case], None]] = {
    "ordinary scores give a finite 0-d float64": finite,
    "the value is a function of the sums alone": only_sums,
    "any partition, order and merge tree gives the same bits": exact_merge,
    "no rows change nothing and have the value nan": empty,
    "ignored rows don't matter": ignored_rows,
    "a row of nan makes the value nan, counts once, and nan_policy='omit' leaves it out of every sum": nan_row,
    "sum names carry every option that changes what is added": sum_names,
    "beside every registered metric, each keeps its value": beside_others,
    "forward gives the batch's value and accumulates": forward,
    "copies are equal and independent": copies,
    "a state_dict brings the sums back, on request": state_dict,
    "a change of dtype does no harm": dtype_casts,
    "per-document sums merge to the same value": documents,
    "an update never waits for the device, and its tensors are buffers": never_waits,
}
