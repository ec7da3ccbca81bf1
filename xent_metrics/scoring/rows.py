"""Scores of rows of logits, computed a chunk of rows at a time and joined into a `TokenScores`.

With m the largest logit of a row and s = Σ_v exp(x_v − m):

    nll = (m − x_target) + ln s        confidence = 1 / s        ln p_v = (x_v − m) − ln s

Each row is scored by itself: its bits don't depend on its batch or chunk. On a CPU, chunks are small enough to stay in
the cache between torch's passes over them, and reuse one buffer: fresh pages can cost several times the pass itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xent_metrics.scoring.backends import is_plain, score_by_backend
from xent_metrics.scoring.devices import argmax_rows, chunks
from xent_metrics.scoring.inputs import ScoringPlan
from xent_metrics.scoring.scores import ExtraScore, TokenScores

__all__ = ["RowScorer", "block_maxima", "first_argmax"]

_ARGMAX_BLOCK = 128  # columns whose maximum is taken first

# MKL chooses its implementation of exp and log at the first call. If several threads make that call at once, one of them
# may get a less accurate one, with a relative error of 4e-5; this was seen in 3 of 100 processes. One call by one thread
# settles the choice.
for _dtype in (torch.float32, torch.float64):
    torch.ones(1, dtype=_dtype, device="cpu").exp().log()


class RowScorer:
    """Scores the rows of a `ScoringPlan` in consecutive blocks.

    >>> from xent_metrics.scoring.inputs import ScoreOptions, make_plan
    >>> logits = torch.zeros(3, 4)
    >>> rows = RowScorer(make_plan(logits.shape, logits.device, torch.tensor([0, 1, 2]), ScoreOptions()))
    >>> rows.add(logits[:2])
    >>> rows.add(logits[2:])
    >>> rows.scores().nll
    tensor([1.3863, 1.3863, 1.3863])
    """

    def __init__(self, plan: ScoringPlan) -> None:
        self.plan = plan
        self._parts: list[dict[str, Tensor]] = []  # scores by name, of consecutive rows
        self._next_row = 0
        self._buffer: Tensor | None = None

    def next_targets(self, rows: int) -> Tensor:
        """The targets of the next `rows` rows: class ids ``(rows,)`` or distributions ``(rows, V)``."""
        targets = self.plan.index if self.plan.soft is None else self.plan.soft
        assert targets is not None
        return targets[self._next_row : self._next_row + rows]

    def add(self, logits: Tensor) -> None:
        """Score the next rows, ``(rows, V)``, by a plugin's backend if one takes them; torch computes the rest."""
        targets, wanted, scores = self.next_targets(len(logits)), self.plan.extra_scores, None
        if self.plan.soft is None:
            scores = score_by_backend("score_backend", wanted, logits=logits, target=targets)
        if scores is None:
            self._take(self._by_torch(logits, targets, wanted))
            return
        missing = {name: score for name, score in wanted.items() if name not in scores}
        if missing or self.plan.has_loss:
            scores = _joined(self._by_torch(logits, targets, missing)) | scores
        self.add_scores(scores)

    def add_scores(self, scores: dict[str, Tensor]) -> None:
        """Take scores of the next rows that were computed elsewhere, for the targets from `next_targets`."""
        self._take([scores])

    def _take(self, parts: list[dict[str, Tensor]]) -> None:
        self._parts += parts
        self._next_row += sum(len(part["nll"]) for part in parts)

    def _by_torch(
        self, logits: Tensor, targets: Tensor, extra_scores: Mapping[str, ExtraScore]
    ) -> list[dict[str, Tensor]]:
        size = self.plan.chunk_rows
        score: Callable[[Tensor, Tensor], dict[str, Tensor]] = partial(self._score_classes, extra_scores=extra_scores)
        if self.plan.soft is not None:
            score = self._score_distributions
        elif self.plan.plain:
            size = argmax_rows(self.plan.vocab_size, logits.device)
            score = self._score_plain if _on_cpu(logits) else self._score_plain_elsewhere
        return [score(*chunk) for chunk in chunks(size, logits, targets)]

    def _score_plain(self, logits: Tensor, index: Tensor) -> dict[str, Tensor]:
        """nll, confidence and correct for class ids, on a CPU, without computing every ln p."""
        maxima, largest, sums = [], [], []
        for chunk in torch.split(logits, self.plan.chunk_rows):
            [terms] = self._buffers(1, chunk)
            chunk = chunk if chunk.dtype == terms.dtype else terms.copy_(chunk)
            maxima.append(block_maxima(chunk))
            largest.append(maxima[-1].amax(-1))
            sums.append(_row_sums(torch.sub(chunk, largest[-1][:, None], out=terms).exp_()))
        top = first_argmax(logits, torch.cat(maxima))
        log_sum = torch.cat(sums).log_()
        wanted = logits.gather(-1, index[:, None]).squeeze(-1)
        nll = (torch.cat(largest) - wanted) + log_sum
        return {"nll": nll, "confidence": log_sum.neg_().exp_(), "correct": top == index}

    def _score_plain_elsewhere(self, logits: Tensor, index: Tensor) -> dict[str, Tensor]:
        """The same on any other device, in two reads and one write: torch's log_softmax is one kernel there, exp is not."""
        top = first_argmax(logits)
        ids = torch.stack([index, top], dim=-1)
        parts = [self._log_prob(rows).gather(-1, of) for rows, of in chunks(self.plan.chunk_rows, logits, ids)]
        nll, top_nll = torch.cat(parts).neg_().unbind(-1)
        return {"nll": nll, "confidence": top_nll.neg().exp_(), "correct": top == index}

    def _score_classes(
        self, logits: Tensor, index: Tensor, extra_scores: Mapping[str, ExtraScore]
    ) -> dict[str, Tensor]:
        """nll, confidence, correct, loss and extra scores; on a CPU the first three have `_score_plain`'s bits."""
        log_prob = self._log_prob(logits)
        top = first_argmax(logits)
        nll, top_nll = log_prob.gather(-1, torch.stack([index, top], dim=-1)).neg_().unbind(-1)
        scores = {"nll": nll, "confidence": top_nll.neg().exp_(), "correct": top == index}
        rows = {"log_prob": log_prob}
        if any(score.of == "logits" for score in extra_scores.values()):
            rows["logits"] = logits.to(log_prob.dtype)
        extras = {name: score.function(rows[score.of], index) for name, score in extra_scores.items()}
        return scores | self._loss(log_prob, nll, index) | extras

    def _loss(self, log_prob: Tensor, nll: Tensor, index: Tensor) -> dict[str, Tensor]:
        """(1 − ε) w_y nll + ε/V Σ_c w_c (−ln p_c), and w_y; empty if neither option is used."""
        smoothing, class_weight = self.plan.label_smoothing, self.plan.class_weight
        if not self.plan.has_loss:
            return {}
        weights = nll.new_ones(self.plan.vocab_size) if class_weight is None else class_weight.to(nll.dtype)
        loss_weight = weights[index]
        loss = (1 - smoothing) * loss_weight * nll
        if smoothing:
            loss = loss - smoothing / self.plan.vocab_size * (log_prob * weights).sum(-1)
        return {"loss": loss, "loss_weight": loss_weight}

    def _score_distributions(self, logits: Tensor, soft: Tensor) -> dict[str, Tensor]:
        """nll, confidence, correct and loss for targets that are distributions."""
        log_prob = self._log_prob(logits)
        top = first_argmax(logits)
        confidence = log_prob.gather(-1, top[:, None]).squeeze(-1).exp()
        soft = soft.to(log_prob.dtype)
        terms = torch.where(soft > 0, soft * log_prob, 0.0)  # 0 ln 0 = 0
        scores = {"nll": -terms.sum(-1), "confidence": confidence, "correct": top == soft.argmax(-1)}
        smoothing, class_weight = self.plan.label_smoothing, self.plan.class_weight
        if not self.plan.has_loss:
            return scores
        smooth = (1 - smoothing) * terms
        if smoothing:
            smooth = smooth + smoothing / self.plan.vocab_size * log_prob
        if class_weight is not None:
            smooth = smooth * class_weight.to(log_prob.dtype)
        loss = -smooth.sum(-1)
        return scores | {"loss": loss, "loss_weight": torch.ones_like(loss)}

    def _log_prob(self, logits: Tensor) -> Tensor:
        """The log-probabilities of a chunk, in float32 or wider."""
        if not _on_cpu(logits):
            return torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        terms, shifted = self._buffers(2, logits)
        chunk = logits if logits.dtype == terms.dtype else terms.copy_(logits)
        torch.sub(chunk, chunk.amax(-1, keepdim=True), out=shifted)
        log_sum = _row_sums(torch.exp(shifted, out=terms)).log_()
        log_prob: Tensor = shifted.sub_(log_sum[:, None])
        return log_prob

    def _buffers(self, count: int, chunk: Tensor) -> Tensor:
        """`count` buffers of the chunk's shape, in float32 or wider.

        The next chunk gets the same memory, unless there are extra scores: these may keep what they were given.
        """
        rows = min(self.plan.chunk_rows, self.plan.counted.numel())
        wide = torch.promote_types(chunk.dtype, torch.float32)
        if self._buffer is None or self.plan.extra_scores:
            self._buffer = torch.empty(count, rows, self.plan.vocab_size, dtype=wide, device=chunk.device)
        return self._buffer[:, : len(chunk)]

    def scores(self) -> TokenScores:
        """The scores of all rows, in the shape of the targets."""
        plan = self.plan
        if not self._parts:  # an empty batch still has every field
            self.add(torch.zeros(0, plan.vocab_size, device=plan.counted.device))
        columns = _joined(self._parts)
        extra_scores = {name: columns.pop(name) for name in plan.extra_scores}
        given = {"target": plan.index, "num_bytes": plan.num_bytes, "counted": plan.counted, "invalid": plan.invalid}
        columns = self._masked(columns) | {name: value for name, value in given.items() if value is not None}
        fields: dict[str, Any] = {name: value.reshape(plan.shape) for name, value in columns.items()}
        return TokenScores(
            **fields,
            weight=plan.weight,
            vocab_size=plan.vocab_size,
            ignore_index=plan.ignore_index if plan.soft is None else None,
            extra_scores={name: value.reshape(*plan.shape, *value.shape[1:]) for name, value in extra_scores.items()},
        )

    def _masked(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The scores with 0 or False in rows that don't count, and nll and loss nan in rows that are invalid."""
        counted, invalid = self.plan.counted, self.plan.invalid
        valid = counted & ~invalid
        masked = {"correct": columns["correct"] & valid & ~columns["nll"].isnan()}  # argmax takes nan for the largest
        for name in ("nll", "loss"):
            if name in columns:
                masked[name] = torch.where(invalid, torch.nan, torch.where(counted, columns[name], 0.0))
        for name, mask in {"confidence": counted, "loss_weight": valid}.items():
            if name in columns:
                masked[name] = torch.where(mask, columns[name], 0.0)
        return masked


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The scores of consecutive parts, joined by name."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _on_cpu(logits: Tensor) -> bool:
    return logits.device.type == "cpu" and is_plain(logits)


def _row_sums(terms: Tensor) -> Tensor:
    """The sum of each row, whatever the number of rows: torch adds up a lone row in another order, so it gets that row twice."""
    return terms.sum(-1) if len(terms) != 1 else torch.cat([terms, terms]).sum(-1)[:1]


def first_argmax(rows: Tensor, maxima: Tensor | None = None) -> Tensor:
    """The index of each row's first maximum, as `rows.argmax(-1)`; on a CPU several times as fast as that.

    Args:
        rows: ``(rows, V)``.
        maxima: `block_maxima` of these rows, if known, in any dtype that holds them exactly.

    >>> first_argmax(torch.tensor([[1.0, 3.0, 3.0]]))
    tensor([1])
    """
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        return rows.argmax(-1)
    if rows.shape[-1] < 2 * _ARGMAX_BLOCK:
        return rows.max(-1).indices
    maxima = block_maxima(rows) if maxima is None else maxima
    start = maxima.argmax(-1, keepdim=True) * _ARGMAX_BLOCK
    # The last block may be short. Its last column is then repeated, which doesn't move the first maximum.
    columns = (start + torch.arange(_ARGMAX_BLOCK, device=rows.device)).clamp_(max=rows.shape[-1] - 1)
    inside = rows.gather(-1, columns).max(-1, keepdim=True).indices
    return torch.squeeze(start + inside, -1)


def block_maxima(rows: Tensor) -> Tensor:
    """The maximum of each block of columns, ``(rows, blocks)``; short rows are one block."""
    whole = rows.shape[-1] // _ARGMAX_BLOCK * _ARGMAX_BLOCK
    if rows.shape[-1] < 2 * _ARGMAX_BLOCK:
        return rows.amax(-1, keepdim=True)
    maxima = torch.unflatten(rows[:, :whole], -1, (-1, _ARGMAX_BLOCK)).amax(-1)
    return maxima if whole == rows.shape[-1] else torch.cat([maxima, rows[:, whole:].amax(-1, keepdim=True)], dim=-1)
