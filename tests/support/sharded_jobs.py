"""What the processes of test_sharded.py do, see distributed.py."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from xent_metrics import CrossEntropy, TokenMetricCollection, TokenScores, score_hidden_states, score_tokens
from xent_metrics.errors import InvalidInputError

ROWS = (4, 6)


def examples(vocab_size: int, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits with ties, infinities, nan and a gap of 1e4; integer and soft targets, some ignored or out of range."""
    generator = torch.Generator().manual_seed(vocab_size)
    logits = (4 * torch.randn(*ROWS, vocab_size, dtype=torch.float64, generator=generator)).to(dtype)
    logits[0, 0] = 0
    logits[0, 1, vocab_size // 2] = 1e4
    logits[0, 2, : vocab_size - 1] = -torch.inf
    logits[1, 0] = -torch.inf
    logits[1, 1, -1] = torch.inf
    logits[1, 2, 0] = torch.nan
    logits[1, 3, ::2] = logits[1, 3].max()
    target = torch.randint(vocab_size, ROWS, generator=generator)
    target[2, 0], target[2, 1], target[2, 2] = -100, vocab_size, -1
    target[0, 0] = target[1, 3] = 0
    soft = torch.softmax(torch.randn(*ROWS, vocab_size, generator=generator), dim=-1)
    soft[3, 0] = torch.eye(vocab_size)[0]
    return logits, {"classes": target, "distributions": soft}


def options(vocab_size: int) -> list[dict[str, Any]]:
    class_weight = 0.5 + torch.arange(vocab_size) % 3
    return [
        {},
        {"label_smoothing": 0.1},
        {"class_weight": class_weight, "label_smoothing": 0.2},
        {"class_weight": class_weight},
    ]


def same(got: TokenScores, expected: TokenScores) -> None:
    """Equal within float32 rounding; fields that aren't real numbers are exactly equal."""
    assert got.fields().keys() == expected.fields().keys()
    for name, value in expected.fields().items():
        torch.testing.assert_close(
            got.fields()[name],
            value,
            rtol=3e-6,
            atol=3e-6,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def vocabulary(rank: int, size: int, sizes: list[int]) -> int:
    """Logits sharded over the vocabulary, evenly or not, against the same logits whole."""
    mesh, compared = init_device_mesh("cpu", (size,)), 0
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    for vocab_size, dtype in itertools.product(sizes, dtypes):
        logits, targets = examples(vocab_size, dtype)
        shards = distribute_tensor(logits, mesh, [Shard(-1)])
        for target, chosen in itertools.product(targets.values(), options(vocab_size)):
            expected = score_tokens(logits, target, token_bytes=torch.arange(vocab_size), **chosen)
            got = score_tokens(shards, target, token_bytes=torch.arange(vocab_size), **chosen)
            same(got, expected)
            assert got.replicas == tuple(range(size))
            compared += 1
    return compared


def hidden(rank: int, size: int) -> int:
    """A head sharded over the vocabulary (or over H), hidden states laid out in every way."""
    mesh, compared = init_device_mesh("cpu", (size,)), 0
    torch.manual_seed(0)
    states, head, bias, target = torch.randn(*ROWS, 16), torch.randn(37, 16), torch.randn(37), torch.randint(37, ROWS)
    target[0, 0] = -100
    two = [
        distribute_tensor(whole, mesh, [placement])
        for whole, placement in ((states, Replicate()), (head[:2], Shard(0)))
    ]
    same(score_hidden_states(*two, target % 2), score_hidden_states(states, head[:2], target % 2))
    further = [{}, {"logit_scale": 0.5, "logit_softcap": 3.0, "label_smoothing": 0.1}]
    heads = [distribute_tensor(head, mesh, [placement]) for placement in (Shard(0), Shard(1))]
    for placement, of_head, more in itertools.product([Replicate(), Shard(0), Shard(1), Shard(2)], heads, further):
        laid_out = distribute_tensor(states, mesh, [placement])
        for given in (bias, distribute_tensor(bias, mesh, [Shard(0)])):
            got = score_hidden_states(laid_out, of_head, target, bias=given, **more)
            same(got, score_hidden_states(states, head, target, bias=bias, **more))
            assert got.replicas == tuple(range(size))
            compared += 1
    halves = states.bfloat16(), head.bfloat16()
    two = [
        distribute_tensor(whole, mesh, [placement])
        for whole, placement in zip(halves, (Replicate(), Shard(0)), strict=True)
    ]
    same(score_hidden_states(*two, target), score_hidden_states(*halves, target))
    own_rows = score_hidden_states(distribute_tensor(states, mesh, [Shard(1)]), head, target.chunk(size, 1)[rank])
    same(own_rows, score_hidden_states(states, head, target)[:, _chunk(ROWS[1], size, rank)])
    assert own_rows.replicas == ()
    return compared


def _chunk(length: int, size: int, rank: int) -> slice:
    part = -(-length // size)
    return slice(rank * part, (rank + 1) * part)


def rows(rank: int, size: int) -> dict[str, Any]:
    """Logits sharded over rows, or held by all: the metric's sum has the bits of one process."""
    mesh = init_device_mesh("cpu", (size,))
    logits, targets = examples(11, torch.float32)
    target = targets["classes"].clamp(0, 10)
    found = {}
    for name, placement in {"batch": Shard(0), "sequence": Shard(1), "held by all": Replicate()}.items():
        metrics = TokenMetricCollection([CrossEntropy(), "token_accuracy", "expected_calibration_error"])
        spread = distribute_tensor(logits, mesh, [placement])
        spread_target = distribute_tensor(target, mesh, [placement])
        with CommDebugMode() as mode:
            metrics.update(spread, spread_target)
        plain = CrossEntropy()
        plain.update(spread.to_local(), spread_target.to_local())
        with metrics.sync_context():
            states = [metric.state.tolist() for metric in metrics.members().values()]
        found[name] = {"states": states, "calls": mode.get_total_counts()}
        if name == "sequence":  # nothing of ours is needed where rows are plain local tensors
            with plain.sync_context():
                found["plain"] = plain.state.tolist()
    return found


def rows_alone() -> list[Any]:
    logits, targets = examples(11, torch.float32)
    metrics = TokenMetricCollection([CrossEntropy(), "token_accuracy", "expected_calibration_error"])
    metrics.update(logits, targets["classes"].clamp(0, 10))
    return [metric.state.tolist() for metric in metrics.members().values()]


def grid(rank: int, size: int) -> dict[str, Any]:
    """Data parallel by tensor parallel, 2 by 2: each row counts once, whatever group the metric is summed over."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    logits, targets = examples(11, torch.float32)
    logits, target = logits[2:], targets["classes"][2:].clamp(0, 10)
    spread = distribute_tensor(logits, mesh, [Shard(0), Shard(2)])
    mine = target.chunk(2)[mesh.get_local_rank("data")]
    expected = score_tokens(logits, target).nll.chunk(2)[mesh.get_local_rank("data")]
    scores = score_tokens(spread, mine)
    torch.testing.assert_close(scores.nll, expected)
    metrics = {
        "world": CrossEntropy(),
        "data": CrossEntropy(process_group=mesh["data"].get_group()),
        "none": CrossEntropy(sync_on_compute=False),
        "tensor": CrossEntropy(process_group=mesh["tensor"].get_group()),
        "on step": CrossEntropy(dist_sync_on_step=True),
    }
    found = {"batch": {name: metric(spread, mine).item() for name, metric in metrics.items()}}
    found["total"] = {name: metric.compute().item() for name, metric in metrics.items()}
    with metrics["world"].sync_context():
        found["counts"] = metrics["world"].counts()
    both = score_tokens(
        distribute_tensor(logits, mesh, [Shard(2), Shard(2)]), distribute_tensor(target, mesh, [Replicate(), Shard(0)])
    )
    torch.testing.assert_close(both.nll, score_tokens(logits, target).nll)
    return found | {"replicas": scores.replicas, "nested": both.replicas, "mean": expected.double().mean().item()}


def cost(rank: int, size: int) -> dict[str, Any]:
    """The collectives of one call, by name, and the most that any carries."""
    mesh = init_device_mesh("cpu", (size,))
    torch.manual_seed(0)
    logits, target = torch.randn(64, 1000), torch.randint(1000, (64,))
    head = distribute_tensor(torch.randn(1000, 8), mesh, [Shard(0)])
    states = distribute_tensor(torch.randn(64, 8), mesh, [Replicate()])
    spread = distribute_tensor(logits, mesh, [Shard(1)])
    pending = DTensor.from_local(logits / size, mesh, [Partial()])
    found = {}
    for name, score in {
        "logits": lambda: score_tokens(spread, target),
        "hidden states": lambda: score_hidden_states(states, head, target, label_smoothing=0.1),
        "pending sum": lambda: score_tokens(pending, target),
        "no rows": lambda: score_tokens(spread[:0], target[:0]),
    }.items():
        with CommDebugMode() as mode:
            score()
        found[name] = {str(op): times for op, times in mode.get_comm_counts().items()}
    torch.testing.assert_close(score_tokens(pending, target).nll, score_tokens(logits, target).nll)
    return found


def errors(rank: int, size: int) -> dict[str, str]:
    mesh = init_device_mesh("cpu", (size,))
    other = init_device_mesh("cpu", (1, size))
    named = init_device_mesh("cpu", (size,), mesh_dim_names=("data",))
    logits, head, states = torch.randn(4, 8), torch.randn(8, 3), torch.randn(4, 3)
    target = torch.randint(8, (4,))
    spread = distribute_tensor(logits, mesh, [Shard(1)])
    by_rows = distribute_tensor(logits, mesh, [Shard(0)])
    extra_scores = {"entropy": object()}
    found = {}
    for name, score in {
        "plain states": lambda: score_hidden_states(states, distribute_tensor(head, mesh, [Shard(0)]), target),
        "plain logits": lambda: score_tokens(logits, distribute_tensor(target, mesh, [Replicate()])),
        "extra_scores": lambda: score_tokens(spread, target, extra_scores=extra_scores),
        "all targets": lambda: score_tokens(by_rows, target),
        "gathered rows": lambda: score_hidden_states(
            distribute_tensor(states, named, [Shard(0)]),
            distribute_tensor(head, named, [Shard(0)]),
            target.chunk(size)[rank],
        ),
        "two meshes": lambda: score_tokens(spread, distribute_tensor(target, other, [Replicate(), Replicate()])),
    }.items():
        try:
            score()
        except InvalidInputError as error:
            found[name] = str(error)
    return found
