"""Score logits that are sharded over the vocabulary where they lie (tensor parallel, "loss parallel").

Each process reads its own classes once. Three reductions over the mesh, a few numbers a row, do the rest: the largest
logit (MAX), the first class that has it (MIN), and sums such as that of exp (SUM). The vocabulary is never gathered.
Rows sharded over other mesh dimensions (batch, sequence) stay where they are: the scores are those of the local rows,
and the metric's own sum does the rest. Rows that several processes hold are counted by one: `TokenScores.replicas`.

Reached through `score_tokens` and `score_hidden_states`, when an input is a DTensor. Shown with gloo; NCCL was not run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.nn import functional as F

from xent_metrics.errors import InvalidInputError
from xent_metrics.scoring import score as scoring
from xent_metrics.scoring.dtensors import Layout, whole
from xent_metrics.scoring.rows import RowScorer, ScoringPlan, first_argmax
from xent_metrics.scoring.scores import TokenScores

__all__ = ["score_hidden_states", "score_tokens"]


def score_tokens(logits: Any, target: Any, *, weight: Any, **options: Any) -> TokenScores:
    """`xent_metrics.score_tokens` for logits ``(…, V)`` that are a DTensor.

    Targets and weights are DTensors on the same mesh, or plain tensors: those of the local rows. Class weights, token
    bytes and distributions are over the whole vocabulary.
    """
    if not isinstance(logits, DTensor):
        raise InvalidInputError("the targets or weights are DTensors and the logits are not; pass target.to_local()")
    layout = Layout(logits, class_dim=logits.ndim - 1)
    own = _at_least_one(layout.own_classes(logits))
    plan = _plan(layout, own.shape[:-1], own.device, target, weight, options)
    return _score(plan, layout, scoring._split(own, max(1, own.numel())))


def score_hidden_states(
    hidden_states: Any,
    lm_head_weight: Any,
    target: Any,
    *,
    bias: Any,
    logit_scale: float | None,
    logit_softcap: float | None,
    weight: Any,
    **options: Any,
) -> TokenScores:
    """`xent_metrics.score_hidden_states` for hidden states ``(…, H)`` and a head ``(V, H)`` that are DTensors.

    Hidden states that are sharded over H, or over rows on the mesh dimension that shards the vocabulary (sequence
    parallel), are gathered over it first, as a column-parallel linear layer does.
    """
    if not isinstance(hidden_states, DTensor):
        raise InvalidInputError(
            "hidden_states is a plain tensor among DTensors: is it the same on every process, or each one's own? "
            "DTensor.from_local(hidden_states, mesh, [Replicate()]) says the former (tensor parallel). For the latter "
            "(FSDP) score with lm_head_weight.full_tensor()"
        )
    mesh = hidden_states.device_mesh
    if not isinstance(lm_head_weight, DTensor):
        lm_head_weight = DTensor.from_local(lm_head_weight, mesh, [Replicate()] * mesh.ndim, run_check=False)
    layout = Layout(lm_head_weight, class_dim=0)
    layout.keep_rows(hidden_states)
    hidden, head = layout.own_rows(hidden_states), layout.own_classes(lm_head_weight)
    dtype = torch.promote_types(hidden.dtype, head.dtype)
    offset = None if bias is None else whole(bias)[layout.classes].to(dtype)
    plan = _plan(layout, hidden.shape[:-1], hidden.device, target, weight, options)

    def logits() -> Iterator[Tensor]:
        for block in scoring._split(hidden, max(1, scoring._MATMUL_CHUNK // max(1, len(head)))):
            rows = _at_least_one(F.linear(block.to(dtype), head.to(dtype), offset))
            plain = logit_scale is None and logit_softcap is None
            yield rows if plain else scoring._adjust(rows, logit_scale, logit_softcap)

    return _score(plan, layout, logits())


def _at_least_one(logits: Tensor) -> Tensor:
    """Where there are more processes than classes, a class that can't be: every row has a largest logit."""
    return logits if logits.shape[-1] else logits.new_full((*logits.shape[:-1], 1), -torch.inf)


def _plan(
    layout: Layout, rows: torch.Size, device: torch.device, target: Any, weight: Any, options: dict[str, Any]
) -> ScoringPlan:
    if options["extra_scores"]:
        raise InvalidInputError(
            f"{', '.join(options['extra_scores'])} look at whole rows of logits, and these are sharded; score logits.full_tensor()"
        )
    target = layout.own_rows(target)
    weight = None if weight is None else layout.own_rows(weight)
    for given in (target, weight):
        if given is not None:
            layout.check_rows(rows, given)
    vectors = {name: options[name] for name in ("token_bytes", "class_weight") if options[name] is not None}
    plan = scoring._plan(
        torch.Size((*rows, layout.vocab_size)),
        device,
        target,
        weight=weight,
        **{**options, **{name: whole(vector) for name, vector in vectors.items()}},
    )
    own = layout.classes.stop - layout.classes.start
    return dataclasses.replace(plan, chunk_rows=scoring._chunk_rows(plan.counted.numel(), max(1, own), device))


def _score(plan: ScoringPlan, layout: Layout, blocks: Iterable[Tensor]) -> TokenScores:
    rows = RowScorer(plan)
    if not layout.class_mesh_dims:
        for block in blocks:
            rows.add(block)
    elif plan.counted.numel():
        shard, start, parts = _Shard(plan, layout.classes), 0, []
        for chunk in (chunk for block in blocks for chunk in torch.split(block, plan.chunk_rows)):
            parts.append(shard.facts(chunk, slice(start, start + len(chunk))))
            start += len(chunk)
        facts = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        rows.parts = [shard.scores(facts, layout)]
    return dataclasses.replace(rows.scores(), replicas=layout.replicas())


class _Shard:
    """Facts of one process' classes, and what all processes' facts make of a row.

    With m the row's largest logit and S = Σ_v exp(x_v − m), ln p_v = x_v − m − ln S, as torch's log_softmax has it.
    """

    def __init__(self, plan: ScoringPlan, classes: slice) -> None:
        self.plan = plan
        self.classes = classes

    def facts(self, logits: Tensor, rows: slice) -> dict[str, Tensor]:
        """Of the local logits ``(rows, own classes)``: the largest, and sums relative to it."""
        top = first_argmax(logits)
        largest = logits.gather(-1, top[:, None]).squeeze(-1).to(torch.promote_types(logits.dtype, torch.float32))
        reference = torch.where(largest.isfinite(), largest, 0.0)
        below = logits - reference[:, None]  # in the wider dtype
        facts = {
            "largest": largest,
            "reference": reference,
            "top": top + self.classes.start,
            "exp": below.exp().sum(-1),
        }
        if self.plan.index is not None:
            place = (self.plan.index[rows] - self.classes.start).clamp(0, logits.shape[-1] - 1)
            facts["target"] = logits.gather(-1, place[:, None]).squeeze(-1).to(largest.dtype)
        for name, weight in self._weights(rows).items():
            weight = weight.to(below.dtype)
            facts[name] = torch.where(weight != 0, weight * below, 0.0).sum(-1)
            facts[f"{name} weight"] = weight.sum(-1).expand_as(top)
        return facts

    def _weights(self, rows: slice) -> dict[str, Tensor]:
        """The q, by name, for which Σ_v q_v ln p_v is needed: over this process' classes, of all rows or of each."""
        soft, class_weight = self.plan.soft, self.plan.class_weight
        scale = torch.ones_like(self.plan.counted[:1], dtype=torch.float32) if class_weight is None else class_weight
        weights = {}
        if soft is not None:
            weights["soft"] = soft[rows, self.classes]
            weights["weighted"] = weights["soft"] * (scale if class_weight is None else scale[self.classes])
        if self.plan.label_smoothing:
            weights["smooth"] = scale.expand(self.plan.vocab_size)[self.classes]
        return weights

    def scores(self, facts: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
        """The rows' scores over all classes, as `RowScorer` gathers them."""
        largest = layout.reduce(facts["largest"], "max")
        nowhere = torch.full_like(facts["top"], layout.vocab_size)
        top = layout.reduce(torch.where(facts["largest"] == largest, facts["top"], nowhere), "min")
        total = self._total(facts, largest, layout)
        log_sum = total["exp"].log()
        # Σ_v q_v ln p_v by the name of q
        linear = {name: total[name] - log_sum * total[f"{name} weight"] for name in self._weights(slice(0, 0))}
        if self.plan.index is not None:
            nll, correct = log_sum - total["target"], top == self.plan.index
        else:
            assert self.plan.soft is not None
            nll, correct = -linear["soft"], top == self.plan.soft.argmax(-1)
        return {"nll": nll, "confidence": log_sum.neg().exp(), "correct": correct} | self._loss(nll, linear)

    def _total(self, facts: dict[str, Tensor], largest: Tensor, layout: Layout) -> dict[str, Tensor]:
        """The sums over all classes, relative to the largest logit of all."""
        own = {"exp": facts["exp"] * (facts["largest"] - largest).exp()}
        if self.plan.index is not None:
            here = (self.plan.index >= self.classes.start) & (self.plan.index < self.classes.stop)
            own["target"] = torch.where(here, facts["target"] - largest, 0.0)
        for name in self._weights(slice(0, 0)):
            weight = facts[f"{name} weight"]
            own |= {name: facts[name] + (facts["reference"] - largest) * weight, f"{name} weight": weight}
        return dict(zip(own, layout.reduce(torch.stack(list(own.values())), "sum"), strict=True))

    def _loss(self, nll: Tensor, linear: dict[str, Tensor]) -> dict[str, Tensor]:
        """The training loss and what it is divided by, as `RowScorer` has them without shards."""
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
