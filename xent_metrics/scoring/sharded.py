"""Scores of logits that are sharded over the vocabulary (tensor parallel, "loss parallel"), without gathering them.

Each process reads its own classes once. Three reductions over the mesh, of a few numbers per row, do the rest: the
largest logit (MAX), the first class that has it (MIN), and sums such as that of exp (SUM). Rows that are sharded over
other mesh dimensions (batch, sequence) stay in place: the scores are those of the local rows, and the metric's sync adds
them up. If several processes hold the same rows, one of them counts them, see `TokenScores.replicas`.

`score_tokens` and `score_hidden_states` call this module when an input is a DTensor. Tested with gloo, not with NCCL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring.devices import chunk_rows, chunks, no_autocast, split
from xent_metrics.scoring.dtensors import Layout, whole
from xent_metrics.scoring.inputs import ScoreOptions, ScoringPlan, make_plan
from xent_metrics.scoring.linear import LMHead, Workspace
from xent_metrics.scoring.rows import RowScorer, first_argmax
from xent_metrics.scoring.scores import TokenScores

__all__ = ["score_hidden_states", "score_tokens"]


def score_tokens(logits: Any, target: Any, options: ScoreOptions) -> TokenScores:
    """`xent_metrics.score_tokens` for logits ``(…, V)`` that are a DTensor.

    Targets and weights are DTensors on the same mesh, or plain tensors of the local rows. Class weights, token bytes and
    distributions cover the whole vocabulary.
    """
    if not isinstance(logits, DTensor):
        raise InvalidInputError("the targets or weights are DTensors but the logits are not; pass target.to_local()")
    layout = Layout(logits, class_dim=logits.ndim - 1)
    own = layout.own_classes(logits)
    plan = _plan(layout, own, target, options)

    def for_each(use: Callable[[Tensor], None]) -> None:
        for block in split(own):
            use(block)

    return _score(plan, layout, for_each)


def score_hidden_states(
    hidden_states: Any,
    lm_head_weight: Any,
    target: Any,
    options: ScoreOptions,
    bias: Any,
    logit_scale: float | None,
    logit_softcap: float | None,
    workspace_bytes: int | None,
) -> TokenScores:
    """`xent_metrics.score_hidden_states` for hidden states ``(…, H)`` and a head ``(V, H)`` that are DTensors.

    Hidden states that are sharded over H are gathered first, as a column-parallel linear layer does. So are those that
    are sharded over rows on a mesh dimension that shards the vocabulary (sequence parallel).
    """
    if not isinstance(hidden_states, DTensor):
        raise InvalidInputError(
            "hidden_states is a plain tensor, but other inputs are DTensors. If it is the same on every process (tensor "
            "parallel), pass DTensor.from_local(hidden_states, mesh, [Replicate()]). If each process has its own (FSDP), "
            "score with lm_head_weight.full_tensor()"
        )
    mesh = hidden_states.device_mesh
    if not isinstance(lm_head_weight, DTensor):
        lm_head_weight = DTensor.from_local(lm_head_weight, mesh, [Replicate()] * mesh.ndim, run_check=False)
    layout = Layout(lm_head_weight, class_dim=0)
    layout.keep_rows(hidden_states)
    hidden, weight = layout.own_rows(hidden_states), layout.own_classes(lm_head_weight)
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    own_bias = None if bias is None else whole(bias)[layout.classes].to(dtype)
    head = LMHead(weight.to(dtype), own_bias, logit_scale, logit_softcap)
    plan, workspace = _plan(layout, hidden, target, options), Workspace(head, workspace_bytes)
    with no_autocast(hidden.device):
        return _score(plan, layout, partial(workspace.for_each, hidden))


def _plan(layout: Layout, own: Tensor, target: Any, options: ScoreOptions) -> ScoringPlan:
    """The plan for the rows of `own`, ``(…, D)``, over the whole vocabulary, in chunks for this process' classes."""
    if options.extra_scores:
        raise InvalidInputError(
            f"{', '.join(options.extra_scores)} need whole rows of logits, but these are sharded over the vocabulary; "
            "score logits.full_tensor()"
        )
    rows, target = own.shape[:-1], layout.own_rows(target)
    layout.check_rows(rows, target)
    given: dict[str, Any] = {}
    if options.weight is not None:
        given["weight"] = layout.own_rows(options.weight)
        layout.check_rows(rows, given["weight"])
    for name in ("token_bytes", "class_weight"):
        if getattr(options, name) is not None:
            given[name] = whole(getattr(options, name))
    plan = make_plan(torch.Size((*rows, layout.vocab_size)), own.device, target, replace(options, **given))
    own_classes = max(1, layout.classes.stop - layout.classes.start)
    return replace(plan, chunk_rows=chunk_rows(own_classes, own.device))


def _score(plan: ScoringPlan, layout: Layout, for_each: Callable[[Callable[[Tensor], None]], None]) -> TokenScores:
    """The scores of the rows that `for_each` gives to a function, a block of the local logits at a time."""
    rows = RowScorer(plan)
    if not layout.class_mesh_dims:  # the vocabulary isn't sharded
        for_each(rows.add)
    elif plan.counted.numel():
        shard = _Shard(plan, layout)
        for_each(shard.add)
        rows.add_scores(shard.scores())
    return replace(rows.scores(), replicas=layout.replicas())


class _Shard:
    """The numbers that each process takes of its own classes, and the scores that all processes' numbers give.

    With m the row's largest logit and S = Σ_v exp(x_v − m), ln p_v = x_v − m − ln S, as in torch's log_softmax.
    """

    def __init__(self, plan: ScoringPlan, layout: Layout) -> None:
        self.plan = plan
        self.layout = layout
        self.classes = layout.classes
        self._parts: list[dict[str, Tensor]] = []  # the sums of consecutive rows, by name
        self._next_row = 0

    def add(self, logits: Tensor) -> None:
        """Take the local logits of the next rows, ``(rows, own classes)``."""
        start, parts = self._next_row, []
        for (chunk,) in chunks(self.plan.chunk_rows, _at_least_one(logits)):
            parts.append(self._own_sums(chunk, slice(start, start + len(chunk))))
            start += len(chunk)
        self._parts, self._next_row = self._parts + parts, start

    def _own_sums(self, logits: Tensor, rows: slice) -> dict[str, Tensor]:
        """The largest of the local logits ``(rows, own classes)``, its class, and sums relative to it, each ``(rows,)``."""
        top = first_argmax(logits)
        largest = logits.gather(-1, top[:, None]).squeeze(-1).to(torch.promote_types(logits.dtype, torch.float32))
        reference = torch.where(largest.isfinite(), largest, 0.0)
        below = logits - reference[:, None]  # in the wider dtype
        sums = {
            "largest": largest,
            "reference": reference,
            "top": top + self.classes.start,
            "exp": below.exp().sum(-1),
        }
        if self.plan.index is not None:
            place = (self.plan.index[rows] - self.classes.start).clamp(0, logits.shape[-1] - 1)
            sums["target"] = logits.gather(-1, place[:, None]).squeeze(-1).to(largest.dtype)
        for name, weight in self._weights(rows).items():
            weight = weight.to(below.dtype)
            sums[name] = torch.where(weight != 0, weight * below, 0.0).sum(-1)
            sums[f"{name} weight"] = weight.sum(-1).expand_as(top)
        return sums

    def _weights(self, rows: slice) -> dict[str, Tensor]:
        """Each q for which Σ_v q_v ln p_v is needed, by name: ``(own classes,)`` or ``(rows, own classes)``."""
        soft, class_weight = self.plan.soft, self.plan.class_weight
        scale = torch.ones_like(self.plan.counted[:1], dtype=torch.float32) if class_weight is None else class_weight
        weights = {}
        if soft is not None:
            weights["soft"] = soft[rows, self.classes]
            weights["weighted"] = weights["soft"] * (scale if class_weight is None else scale[self.classes])
        if self.plan.label_smoothing:
            weights["smooth"] = scale.expand(self.plan.vocab_size)[self.classes]
        return weights

    def scores(self) -> dict[str, Tensor]:
        """The rows' scores over all classes, as `RowScorer` takes them."""
        own = {name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}
        largest = self.layout.reduce(own["largest"], "max")
        not_here = torch.full_like(own["top"], self.layout.vocab_size)
        top = self.layout.reduce(torch.where(own["largest"] == largest, own["top"], not_here), "min")
        total = self._total(own, largest)
        log_sum = total["exp"].log()
        # Σ_v q_v ln p_v by the name of q
        linear = {name: total[name] - log_sum * total[f"{name} weight"] for name in self._weights(slice(0, 0))}
        if self.plan.index is not None:
            nll, correct = log_sum - total["target"], top == self.plan.index
        else:
            assert self.plan.soft is not None
            nll, correct = -linear["soft"], top == self.plan.soft.argmax(-1)
        return {"nll": nll, "confidence": log_sum.neg().exp(), "correct": correct} | self._loss(nll, linear)

    def _total(self, own: dict[str, Tensor], largest: Tensor) -> dict[str, Tensor]:
        """The sums over all classes, relative to the largest logit of the whole row."""
        sums = {"exp": own["exp"] * (own["largest"] - largest).exp()}
        if self.plan.index is not None:
            here = (self.plan.index >= self.classes.start) & (self.plan.index < self.classes.stop)
            sums["target"] = torch.where(here, own["target"] - largest, 0.0)
        for name in self._weights(slice(0, 0)):
            weight = own[f"{name} weight"]
            sums |= {name: own[name] + (own["reference"] - largest) * weight, f"{name} weight": weight}
        return dict(zip(sums, self.layout.reduce(torch.stack(list(sums.values())), "sum"), strict=True))

    def _loss(self, nll: Tensor, linear: dict[str, Tensor]) -> dict[str, Tensor]:
        """The training loss and its divisor, as `RowScorer` computes them without shards."""
        smoothing, class_weight = self.plan.label_smoothing, self.plan.class_weight
        if not smoothing and class_weight is None:
            return {}
        loss_weight = torch.ones_like(nll)
        if self.plan.index is not None and class_weight is not None:
            loss_weight = class_weight.to(nll.dtype)[self.plan.index]
        loss = loss_weight * nll if self.plan.soft is None else -linear["weighted"]
        loss = (1 - smoothing) * loss
        if smoothing:
            loss = loss - smoothing / self.plan.vocab_size * linear["smooth"]
        return {"loss": loss, "loss_weight": loss_weight}


def _at_least_one(logits: Tensor) -> Tensor:
    """The local logits; one impossible class (−inf) for a process without classes, so that each row has a maximum."""
    return logits if logits.shape[-1] else logits.new_full((*logits.shape[:-1], 1), -torch.inf)
