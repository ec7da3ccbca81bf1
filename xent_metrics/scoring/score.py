"""`score_tokens` scores targets under logits; `score_hidden_states` computes the logits itself, a block at a time.

Both make one pass in chunks, in float32 or wider, and never wait for the device. nll = logsumexp(logits) − logits[target]
stays in log space, without softmax-then-log and without an epsilon: a logit gap of 1e4 is an nll of 1e4. The formulas are
computed in rows.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xent_metrics.scoring.backends import score_by_backend
from xent_metrics.scoring.binary import Binary, two_classes
from xent_metrics.scoring.devices import no_autocast, split
from xent_metrics.scoring.inputs import ScoreOptions, as_tensor, check_logits, make_plan
from xent_metrics.scoring.linear import BLOCK_ROWS, LMHead, Workspace, make_head, prefers_blocks, score_by_vocabulary
from xent_metrics.scoring.rows import RowScorer
from xent_metrics.scoring.scores import ExtraScore, TokenScores

__all__ = ["score_hidden_states", "score_tokens"]


@torch.no_grad()
def score_tokens(
    logits: Any,
    target: Any,
    *,
    ignore_index: int = -100,
    weight: Any = None,
    token_bytes: Any = None,
    label_smoothing: float = 0.0,
    class_weight: Any = None,
    binary: Binary | None = None,
    extra_scores: Mapping[str, ExtraScore] | None = None,
) -> TokenScores:
    """Score targets under logits: nll = −ln softmax(logits)[target], in nats per token.

    Args:
        logits: ``(…, V)``, usually (B, T, V) or (N, V), of any float dtype and strides. Nothing is shifted: ``logits[t]``
            scores ``target[t]``. A DTensor sharded over the vocabulary isn't gathered, see `xent_metrics.scoring.sharded`.
        target: class ids ``(…)`` of any integer dtype, or distributions (soft targets) ``(…, V)`` of a float dtype.
        ignore_index: the target that doesn't count.
        weight: ``(…)``, the weight of each row in every sum. A row of weight 0 doesn't count; a negative weight or nan
            makes a row invalid.
        token_bytes: ``(V,)`` from `xent_metrics.token_bytes`, to get `num_bytes`. A negative entry makes its rows invalid.
        label_smoothing: as in `torch.nn.functional.cross_entropy`. This and `class_weight` give `loss` and `loss_weight`;
            nll and the other scores don't change.
        class_weight: ``(V,)``, as `weight` in `torch.nn.functional.cross_entropy`.
        binary: "logits" or "probabilities": `logits` is ``(…)``, one number per row for class 1, and targets are 0 or 1.
        extra_scores: extra scores of each row, by name, taken in the same pass.

    Returns:
        `TokenScores` with the shape of the targets. A target that is out of range, or no distribution, has nll nan and
        `invalid` True; a metric raises `InvalidTargetError` for it in `compute`.

    Raises:
        InvalidInputError: shapes, dtypes or options that can't be scored.

    >>> logits = torch.tensor([[0.0, 1e4], [2.0, 2.0]])
    >>> score_tokens(logits, torch.tensor([0, 1])).nll.tolist()
    [10000.0, 0.6931471824645996]
    """
    options = ScoreOptions(ignore_index, weight, token_bytes, label_smoothing, class_weight, extra_scores)
    if binary is not None:
        logits, target = two_classes(as_tensor(logits), as_tensor(target), binary)
    if _any_dtensor(logits, target, weight):
        from xent_metrics.scoring import sharded

        return sharded.score_tokens(logits, target, options)
    logits = check_logits(as_tensor(logits))
    rows = RowScorer(make_plan(logits.shape, logits.device, target, options))
    with no_autocast(logits.device):  # extra scores may multiply
        for block in split(logits):
            rows.add(block)
    return rows.scores()


@torch.no_grad()
def score_hidden_states(
    hidden_states: Any,
    lm_head_weight: Any,
    target: Any,
    *,
    bias: Any = None,
    logit_scale: float | None = None,
    logit_softcap: float | None = None,
    ignore_index: int = -100,
    weight: Any = None,
    token_bytes: Any = None,
    label_smoothing: float = 0.0,
    class_weight: Any = None,
    extra_scores: Mapping[str, ExtraScore] | None = None,
    workspace_bytes: int | None = None,
) -> TokenScores:
    """Score targets under ``logits = hidden_states @ lm_head_weight.T`` without holding all the logits in memory.

    In full, the logits are softcap · tanh(scale · (hidden_states @ lm_head_weight.T + bias) / softcap); each option that is
    None is left out. The factors are in their common dtype, under autocast too. On CUDA a half-precision product is kept in
    float32, as it was accumulated; elsewhere it is rounded to that dtype. Scale and softcap are in float32 or wider.

    Args:
        hidden_states: ``(…, H)``.
        lm_head_weight: ``(V, H)``.
        target: class ids ``(…)`` or distributions ``(…, V)``, as for `score_tokens`.
        bias: ``(V,)``.
        logit_scale: finite.
        logit_softcap: positive and finite.
        ignore_index: the target that doesn't count.
        weight: ``(…)``, as for `score_tokens`.
        token_bytes: ``(V,)``, to get `num_bytes`.
        label_smoothing: to get `loss` and `loss_weight`, as is `class_weight`.
        class_weight: ``(V,)``.
        extra_scores: extra scores of each row, by name.
        workspace_bytes: how much memory the logits may take at a time on a GPU: by default 256 MiB, or what 1,024 rows take
            if that is more. The memory is used again for the next rows, and halved if the device runs out of it. Up to as
            much, at most 192 MiB, goes to log-probabilities. Under `torch.compile` all logits are in memory at once.

    Returns:
        `TokenScores` with the shape of the targets.

    Raises:
        InvalidInputError: shapes, dtypes or options that can't be scored.

    >>> hidden, head = torch.ones(5, 3), torch.zeros(8, 3)
    >>> score_hidden_states(hidden, head, torch.arange(5)).nll     # uniform over 8: ln 8
    tensor([2.0794, 2.0794, 2.0794, 2.0794, 2.0794])
    """
    options = ScoreOptions(ignore_index, weight, token_bytes, label_smoothing, class_weight, extra_scores)
    if _any_dtensor(hidden_states, lm_head_weight, target, weight):
        from xent_metrics.scoring import sharded

        return sharded.score_hidden_states(
            hidden_states, lm_head_weight, target, options, bias, logit_scale, logit_softcap, workspace_bytes
        )
    hidden = as_tensor(hidden_states)
    head = make_head(hidden, as_tensor(lm_head_weight), bias, logit_scale, logit_softcap)
    with no_autocast(hidden.device):
        return _score_under(head, hidden, target, options, workspace_bytes)


def _score_under(
    head: LMHead, hidden: Tensor, target: Any, options: ScoreOptions, workspace_bytes: int | None
) -> TokenScores:
    shape = torch.Size((*hidden.shape[:-1], head.vocab_size))
    plan = make_plan(shape, hidden.device, target, options)
    rows, by_vocabulary = RowScorer(plan), prefers_blocks(head, plan)
    workspace = Workspace(head, workspace_bytes, reuse=not plan.extra_scores)
    for block in split(hidden, BLOCK_ROWS if by_vocabulary else None):
        block = block.to(head.weight.dtype)
        scores = _score_by_backend(block, head, rows)
        if scores is None and by_vocabulary:
            scores = score_by_vocabulary(block, head, rows.next_targets(len(block)))
        if scores is None:
            workspace.for_each(block, rows.add)
        else:
            rows.add_scores(scores)
    return rows.scores()


def _score_by_backend(hidden: Tensor, head: LMHead, rows: RowScorer) -> dict[str, Tensor] | None:
    """Scores of the next rows from a plugin that needs no logits; None if there is none, or more is asked for."""
    if rows.plan.soft is not None or rows.plan.has_loss:
        return None
    return score_by_backend(
        "linear_cross_entropy_backend",
        rows.plan.extra_scores,
        need_all=True,
        hidden_states=hidden,
        head=head,
        target=rows.next_targets(len(hidden)),
    )


def _any_dtensor(*arrays: Any) -> bool:
    """True if one is a DTensor; recognised by its mesh, so that torch.distributed.tensor need not be imported."""
    return any(isinstance(array, Tensor) and hasattr(array, "device_mesh") for array in arrays)
