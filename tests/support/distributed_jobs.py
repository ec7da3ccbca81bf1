"""What the processes of test_distributed.py do: importable by a fresh interpreter, see distributed.py."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics import MetricCollection
from torchmetrics.utilities.distributed import gather_all_tensors

from support.distributed import join
from support.registered import buildable
from xent_metrics import (
    CrossEntropy,
    ExpectedCalibrationError,
    Perplexity,
    TokenAccuracy,
    TokenMetricCollection,
    TokenScores,
    from_loglikelihoods,
    get_metric,
    score_tokens,
)
from xent_metrics.errors import SyncError
from xent_metrics.samplers import UnpaddedSampler, sample_weights
from xent_metrics.scoring.pairs import score_pair
from xent_metrics.scoring.scores import ExtraScore

BATCHES = 9
NAMES = ["cross_entropy", "perplexity", "token_accuracy", "expected_calibration_error"]


def batch(number: int) -> TokenScores:
    """A batch with every field, of two classes, which suit every metric, and of a shape of its own."""
    generator = torch.Generator().manual_seed(number)
    shape = (1 + number % 3, 2 + number)
    logits = 3 * torch.randn(*shape, 2, generator=generator)
    target = torch.randint(2, shape, generator=generator)
    target[:, 0] = -100
    weight = torch.rand(shape, generator=generator)
    scores = score_tokens(
        logits, target, weight=weight, token_bytes=torch.arange(2), label_smoothing=0.1, extra_scores=further_scores()
    )
    pair = score_pair(logits, logits.flip(-1), target)
    words = torch.ones(shape, dtype=torch.int64)
    return dataclasses.replace(scores, num_words=words, extra_scores={**scores.extra_scores, **pair.extra_scores})


def further_scores() -> dict[str, ExtraScore]:
    return {name: score for metric in buildable() for name, score in get_metric(metric).extra_scores().items()}


def everything() -> TokenMetricCollection:
    return TokenMetricCollection({name: get_metric(name) for name in buildable()})


def summary(metrics: TokenMetricCollection) -> dict[str, Any]:
    """Every value and every sum, to the last bit."""
    values = {name: value.item().hex() for name, value in metrics.compute().items()}
    with metrics.sync_context():
        states = {name: metric.state.tolist() for name, metric in metrics.members().items()}
    return {"values": values, "states": states}


def alone() -> dict[str, Any]:
    """What one process makes of all batches."""
    metrics = everything()
    for number in range(BATCHES):
        metrics.update(batch(number))
    return summary(metrics)


@contextmanager
def counting() -> Iterator[list[str]]:
    """The collectives that are called inside, by name."""
    calls: list[str] = []
    barrier = mock.patch.object(dist, "barrier", side_effect=lambda *_, **__: calls.append("barrier"))
    with CommDebugMode() as mode, barrier:
        yield calls
        calls += [str(op) for op, times in mode.get_comm_counts().items() for _ in range(times)]


def evaluate(rank: int, size: int, deal: list[list[int]]) -> dict[str, Any]:
    metrics = everything()
    for number in deal[rank]:
        metrics.update(batch(number))
    with counting() as calls:
        metrics.compute()
    before = [metric.state.tolist() for metric in metrics.members().values()]
    answer = summary(metrics) | {"calls": calls}
    assert [metric.state.tolist() for metric in metrics.members().values()] == before
    return answer


def evaluate_singly(rank: int, size: int, deal: list[list[int]]) -> dict[str, Any]:
    """Metrics on their own, and in torchmetrics' own collection."""
    single, stock = CrossEntropy(), MetricCollection([CrossEntropy(), Perplexity(), TokenAccuracy()])
    for number in deal[rank]:
        single.update(batch(number))
        stock.update(batch(number))
    with counting() as calls:
        values = {"cross_entropy": single.compute()}
    gathered = CrossEntropy(dist_sync_fn=lambda tensor, group: gather_all_tensors(tensor, group))
    gathered.merge_state(single)
    values |= {"gathered": gathered.compute(), **stock.compute()}
    return {"values": {name: value.item().hex() for name, value in values.items()}, "calls": calls}


def one_by_one(rank: int, size: int, orders: list[list[str]]) -> list[dict[str, Any]]:
    """Epochs in which members are computed one at a time, in these orders, and all are reset at the end."""
    metrics, epochs = TokenMetricCollection(NAMES), []
    for epoch, order in enumerate(orders):
        if rank != 1 or epoch:  # once, a process without data
            metrics.update(batch(rank + epoch))
        with counting() as calls:
            values = [metrics[name].compute().item() for name in order]
        epochs.append({"values": values, "calls": len(calls), "together": metrics.compute()})
        metrics.reset()
    return [
        {**e, "together": [e["together"][n].item() for n in order]} for e, order in zip(epochs, orders, strict=True)
    ]


def play(rank: int, size: int, moves: list[tuple[Any, ...]]) -> dict[str, Any]:
    """A sequence of updates and resets that differ between ranks, and of computes that don't."""
    metrics = TokenMetricCollection({key: CrossEntropy() for key in "abc"})
    results: list[Any] = []
    for kind, key, by_rank in moves:
        if kind == "update" and by_rank[rank]:
            metrics[key].update(from_loglikelihoods([-float(by_rank[rank])], row_kind="token"))
        elif kind == "forward" and by_rank[rank]:
            metrics[key](from_loglikelihoods([-float(by_rank[rank])], row_kind="token"))
        elif kind == "reset" and by_rank[rank]:
            metrics[key].reset()
        elif kind == "save and load" and by_rank[rank]:
            metrics[key].persistent(True)
            metrics[key].load_state_dict(metrics[key].state_dict())
        elif kind == "reset all":
            metrics.reset()
        elif kind in ("compute", "compute all", "sync"):
            with counting() as calls:
                result = _computed(metrics, kind, key)
            results.append((result, len(calls)))
    return {"results": results, "local": {key: metrics[key].state[3:, 2].tolist() for key in "abc"}}


def _computed(metrics: TokenMetricCollection, kind: str, key: str) -> Any:
    try:
        if kind == "compute":
            return metrics[key].compute().item()
        if kind == "compute all":
            return {key: value.item() for key, value in metrics.compute().items()}
        with metrics[key].sync_context():
            return metrics[key].value_of(metrics[key].state).item()
    except SyncError as error:
        return str(error)


def another_first(rank: int, size: int) -> list[tuple[bool, int]]:
    """An epoch in which one member alone is computed, a reset of all, and an epoch in which another comes first."""
    metrics, found = TokenMetricCollection(NAMES), list[tuple[bool, int]]()
    for order in (NAMES[:1], NAMES[::-1]):
        metrics.update(batch(rank + len(found)))
        with counting() as calls:
            values = [metrics[name].compute().item() for name in order]
        found.append((values == [metrics.compute()[name].item() for name in order], len(calls)))
        metrics.update(batch(rank))
        metrics[NAMES[0]].compute()
        metrics.reset()
    return found


def in_other_orders(rank: int, size: int) -> dict[str, Any]:
    """Members that hold the same kinds of sums, computed in an order that each rank chooses."""
    metrics = TokenMetricCollection({key: CrossEntropy() for key in "abc"})
    for place, metric in enumerate(metrics.members().values()):
        metric.update(from_loglikelihoods([-float(10**place + rank)], row_kind="token"))
    with counting() as calls:
        values = {key: metrics[key].compute().item() for key in ("abc", "cab", "bca")[rank]}
    together = {key: value.item() for key, value in metrics.compute().items()}
    return {"values": values, "together": together, "calls": len(calls)}


def _sync_error(compute: Any) -> str:
    try:
        return f"no error but {compute()}"
    except SyncError as error:
        return str(error)


def different(rank: int, size: int, by_rank: list[list[str]]) -> dict[str, Any]:
    """Each rank computes a collection of its own, and then all the same."""
    metrics, same = TokenMetricCollection({f"{i}": name for i, name in enumerate(by_rank[rank])}), CrossEntropy()
    for each in (metrics, same):
        each.update(batch(rank))
    before = [metric.state for metric in metrics.members().values()]
    error = _sync_error(metrics.compute)
    intact = all(metric.state is state for metric, state in zip(metrics.members().values(), before, strict=True))
    expected = CrossEntropy(sync_on_compute=False)
    for other in range(size):
        expected.update(batch(other))
    return {"error": error, "intact": intact, "later": same.compute().item(), "expected": expected.compute().item()}


def different_options(rank: int, size: int, *options: dict[str, Any]) -> str:
    metric = get_metric("expected_calibration_error", **options[rank])
    metric.update(batch(rank))
    return _sync_error(metric.compute)


def one_ahead(rank: int, size: int) -> dict[str, Any]:
    """The last rank fails in its second sync before it sends anything, and goes on to its third while the others wait."""
    metric = CrossEntropy()
    metric.update(batch(rank))
    metric.compute()
    if rank == size - 1:
        with mock.patch("torch.cat", side_effect=MemoryError("mine")):
            assert "MemoryError: mine. It failed in this process itself" in _sync_error(metric.compute)
        metric.update(batch(8))
    before = metric.state
    return {"error": _sync_error(metric.compute), "intact": metric.state is before}


def one_group_fails(rank: int, size: int) -> tuple[Any, int]:
    """Ranks 0 and 2 compute different metrics in a group of their own; all four then meet in the default group."""
    even, odd = dist.new_group([0, 2]), dist.new_group([1, 3])
    kind = Perplexity if rank == 2 else CrossEntropy
    own, everyone = kind(process_group=even if rank % 2 == 0 else odd), CrossEntropy()
    metrics = TokenMetricCollection({"a": own, "b": everyone})  # in this order
    metrics.update(from_loglikelihoods([-2.0 * rank], row_kind="token"))
    with counting() as calls:
        try:
            result: Any = metrics.compute()["b"].item()
        except SyncError:
            result = "error"
    return result, len(calls)


def descriptions(rank: int, size: int) -> list[str]:
    """What is in the states of metrics, among them one with an option that has an address, and a set."""

    class Odd(CrossEntropy):
        name = "odd"

        def __init__(self, function: Any = print, words: Any = (), **kwargs: Any) -> None:
            super().__init__(**kwargs)

        def shared_sums(self) -> Any:
            return ()

        def sums(self, scores: TokenScores) -> Any:
            return {"nats": scores.weighted(scores.nll), "tokens": scores.weighted(scores.nll)}

    odd = Odd(function=lambda: 0, words=frozenset("abcdefgh"))
    return [metric.described_sums for metric in (odd, *everything().members().values())]


def copies(rank: int, size: int) -> dict[str, int]:
    """How many collectives copies need, computed one by one, beside what they were copied from."""
    metrics = TokenMetricCollection(NAMES[:3])
    metrics.update(batch(rank))
    metrics["cross_entropy"].compute()  # the others have unread totals, which no copy takes along
    made = {
        "clone": metrics.clone(prefix="val/"),
        "deepcopy": copy.deepcopy(metrics),
        "pickle": pickle.loads(pickle.dumps(metrics)),
    }
    found = {}
    for how, other in made.items():
        other.update(batch(7))
        with counting() as calls:
            for metric in other.members().values():
                metric.compute()
        found[how] = len(calls)
    member = metrics["perplexity"].clone()
    member.update(batch(5))
    with counting() as calls:
        member.compute()
        metrics["perplexity"].compute()
        metrics["token_accuracy"].compute()
    return found | {"clone of a member, then the others": len(calls)}


def groups(rank: int, size: int) -> dict[str, Any]:
    """Four processes in two groups, and in none."""
    even, odd, first = dist.new_group([0, 2]), dist.new_group([1, 3]), dist.new_group([0, 1, 2])
    mine = even if rank % 2 == 0 else odd
    metric = CrossEntropy(process_group=mine)
    metrics = TokenMetricCollection(
        {
            "a": CrossEntropy(process_group=mine),
            "b": Perplexity(process_group=mine),
            "c": CrossEntropy(),
            "d": Perplexity(),
        }
    )
    outside = CrossEntropy(process_group=first)
    for each in (metric, metrics, outside):
        each.update(from_loglikelihoods([-float(10**rank)], row_kind="token"))
    clone = metrics.clone()
    with counting() as calls:
        values = {key: value.item() for key, value in metrics.compute().items()}
    with counting() as singly:
        for key in "acbd":
            assert clone[key].compute().item() == values[key]
    own = metric.clone().compute().item(), outside.compute().item()
    return {"own": own, **values, "calls": len(calls), "one by one": len(singly)}


def local_only(rank: int, size: int) -> tuple[float, int]:
    metrics = TokenMetricCollection([CrossEntropy(sync_on_compute=False), Perplexity()])
    metrics.update(from_loglikelihoods([-float(rank)], row_kind="token"))
    with counting() as calls:
        value = metrics.compute()["cross_entropy"].item()
        metrics["perplexity"].compute()
    return value, len(calls)


def contexts(rank: int, size: int) -> dict[str, Any]:
    """What is synced inside a context, and what is left of it outside."""
    metrics = TokenMetricCollection(NAMES)
    metrics.update(batch(rank))
    local = {name: metric.state.clone() for name, metric in metrics.members().items()}
    with counting() as calls:
        with metrics.sync_context():
            inside = {name: value.item() for name, value in metrics.compute().items()}
            singly = {name: metric.compute().item() for name, metric in metrics.members().items()}
        with metrics["perplexity"].sync_context():
            outer = {name: value.item() for name, value in metrics.compute().items()}
        try:
            with metrics.sync_context():
                metrics.update(batch(0))
        except SyncError as error:
            refused = str(error)
    assert all(metric.state.equal(local[name]) for name, metric in metrics.members().items())
    assert not any(metric._is_synced for metric in metrics.members().values())
    together = {name: value.item() for name, value in metrics.compute().items()}
    return {"same": inside == singly == outer == together, "calls": len(calls), "refused": refused}


def on_step(rank: int, size: int) -> list[float]:
    """`dist_sync_on_step` makes forward's value that of all processes' batches."""
    metrics = TokenMetricCollection({"step": CrossEntropy(dist_sync_on_step=True), "own": CrossEntropy()})
    first = metrics(from_loglikelihoods([-float(rank)], row_kind="token"))
    metrics(from_loglikelihoods([-4.0], row_kind="token"))
    total = metrics.compute()
    return [value.item() for value in (*first.values(), *total.values())]


class Model(torch.nn.Module):
    """As a LightningModule has it: metrics are submodules, and checkpoints are the module's."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = everything()
        self.metrics.persistent(True)


def save(rank: int, size: int, deal: list[list[int]], synced: bool) -> bytes:
    model = Model()
    for number in deal[rank]:
        model.metrics.update(batch(number))
    file = io.BytesIO()
    if synced:
        with model.metrics.sync_context():
            torch.save(model.state_dict(), file)
    else:
        torch.save(model.state_dict(), file)
    return file.getvalue()


def resume(
    rank: int, size: int, files: list[bytes], deal: list[list[int]] | None, before: int = 0
) -> dict[str, Any] | str:
    """Load rank 0's file (or each rank's own), take the rest of the batches, and compute."""
    model = Model()
    for number in range(before):  # a load replaces what was there
        model.metrics.update(batch(number))
    try:
        model.load_state_dict(torch.load(io.BytesIO(files[rank % len(files)])))
    except RuntimeError as error:
        return str(error)
    if deal is None:
        return "loaded"
    for number in deal[rank]:
        model.metrics.update(batch(number))
    return summary(model.metrics)


def load_too_early(rank: int, size: int, file: bytes, rendezvous: str, loads: list[int]) -> list[Any]:
    """Some ranks load before they know of each other."""
    dist.destroy_process_group()
    model = Model()
    if rank in loads:
        model.load_state_dict(torch.load(io.BytesIO(file)))
    join(rendezvous, rank, size)
    answers: list[Any] = []
    for _ in range(2):
        try:
            answers.append(summary(model.metrics))
        except SyncError as error:
            answers.append(str(error))
        model.metrics.reset()
    return answers


def sample_data(samples: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(samples)
    return [
        (2 * torch.randn(4, 7, generator=generator), torch.randint(7, (4,), generator=generator))
        for _ in range(samples)
    ]


def sampled(rank: int, size: int, samples: int, shuffle: bool) -> list[Any]:
    """Two epochs over a dataset whose size is not a multiple of the processes, padding weighed 0 or left out."""
    data, found = sample_data(samples), []
    for kind in (DistributedSampler, UnpaddedSampler):
        sampler = kind(data, num_replicas=size, rank=rank, shuffle=shuffle)
        metrics = TokenMetricCollection([CrossEntropy(), TokenAccuracy(), ExpectedCalibrationError()])
        for epoch in range(2):
            sampler.set_epoch(epoch)
            loader = DataLoader(data, batch_size=2, sampler=sampler)
            weights = sample_weights(sampler).split(2)
            for (logits, target), weight in zip(loader, weights, strict=len(sampler) > 0):
                metrics.update(logits, target, weight=weight[:, None].expand_as(target))
        found.append(sampled_summary(metrics))
    return found


def sampled_summary(metrics: TokenMetricCollection) -> Any:
    """Values, sums and the count of rows; not that of ignored rows, which is where padding shows."""
    values = [value.item().hex() for value in metrics.compute().values()]
    with metrics.sync_context():
        states = [metric.state[[0, *range(2, len(metric.state))]].tolist() for metric in metrics.members().values()]
    return values, states
