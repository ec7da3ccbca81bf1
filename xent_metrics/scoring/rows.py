"""What is computed of each row of logits, a chunk of rows at a time, and gathered into a `TokenScores`.

With m the largest logit of a row and s = Σ_v exp(x_v − m):

    nll = (m − x_target) + ln s        confidence = 1 / s        ln p_v = (x_v − m) − ln s

Each row is scored by itself: its bits don't depend on the batch or the chunk it came in. Chunks are small enough to stay
in the processor's cache between the passes that torch makes over them; on a CPU their memory is taken again by the next
chunk, since new pages can cost several times the pass itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xent_metrics.scoring.backends import is_plain, score_by_backend
from xent_metrics.scoring.scores import ExtraScore, TokenScores

__all__ = ["RowScorer", "ScoringPlan", "block_maxima", "first_argmax"]

_ARGMAX_BLOCK = 128
_BLOCK_ROWS = 2048  # whose top-1 are found at once: a block of classes of each

# MKL chooses its exp and log at the first call. Where threads make that at once, one of them may be given another,
# whose relative error is 4e-5: three in a hundred processes were seen to begin so. One call, by one thread, settles it.
for _dtype in (torch.float32, torch.float64):
    torch.ones(1, dtype=_dtype, device="cpu").exp().log()


@dataclass(frozen=True)
class ScoringPlan:
    """What is to be scored, checked before anything is computed. N rows, flattened."""

    shape: torch.Size
    vocab_size: int
    index: Tensor | None  # (N,) in [0, V); None for soft targets
    soft: Tensor | None  # (N, V)
    counted: Tensor  # (N,)
    invalid: Tensor  # (N,)
    label_smoothing: float
    class_weight: Tensor | None  # (V,)
    weight: Tensor | None  # of the targets' shape
    num_bytes: Tensor | None  # (N,)
    extra_scores: Mapping[str, ExtraScore]
    ignore_index: int
    chunk_rows: int

    @property
    def plain(self) -> bool:
        """Whether nll, confidence and correct under class targets are all that is asked: what a backend gives."""
        return self.soft is None and not self.label_smoothing and self.class_weight is None and not self.extra_scores


class RowScorer:
    """Collects the scores of consecutive chunks of rows."""

    def __init__(self, plan: ScoringPlan) -> None:
        self.plan = plan
        self.start = 0
        self.parts: list[dict[str, Tensor]] = []
        self._taken: Tensor | None = None

    def add(self, logits: Tensor) -> None:
        """Score the next rows, ``(rows, V)``: by a plugin's backend as far as it goes, and by torch a chunk at a time."""
        plan = self.plan
        targets = plan.index if plan.soft is None else plan.soft
        assert targets is not None
        targets = targets[self.start : self.start + len(logits)]
        self.start += len(logits)
        scores = None if plan.index is None else score_by_backend("score_backend", logits=logits, target=targets)
        first = len(self.parts)
        if scores is None or not plan.plain:
            score, size = self._hard if plan.soft is None else self._soft, plan.chunk_rows
            if plan.plain and _on_cpu(logits):
                score, size = self._facts, _BLOCK_ROWS
            chunks = zip(*(torch.split(tensor, size) for tensor in (logits, targets)), strict=True)
            self.parts += [score(*chunk) for chunk in chunks]
        if scores is not None:  # torch gives what else is asked, which changes no bit of these
            self.parts[first:] = [_joined(self.parts[first:]) | scores]

    def add_facts(self, rows: int, score: Callable[[Tensor], dict[str, Tensor]]) -> None:
        """Take the plain scores of the next `rows` rows from ``score(index)``."""
        assert self.plan.index is not None
        self.parts.append(score(self.plan.index[self.start : self.start + rows]))
        self.start += rows

    def _facts(self, logits: Tensor, index: Tensor) -> dict[str, Tensor]:
        """nll, confidence and correct of rows with one target class each, and nothing else: the least that does."""
        maxima, largest, sums = [], [], []
        for chunk in torch.split(logits, self.plan.chunk_rows):
            [terms] = self._memory(1, chunk)
            chunk = chunk if chunk.dtype == terms.dtype else terms.copy_(chunk)
            maxima.append(block_maxima(chunk))
            largest.append(maxima[-1].amax(-1))
            sums.append(_row_sums(torch.sub(chunk, largest[-1][:, None], out=terms).exp_()))
        top = first_argmax(logits, torch.cat(maxima))
        rest = torch.cat(sums).log_()
        wanted = logits.gather(-1, index[:, None]).squeeze(-1)
        nll = (torch.cat(largest) - wanted) + rest
        return {"nll": nll, "confidence": rest.neg_().exp_(), "correct": top == index}

    def _hard(self, logits: Tensor, index: Tensor) -> dict[str, Tensor]:
        """The same, with the loss and the extra scores: to the last bit where both are on a CPU."""
        log_prob = self._log_prob(logits)
        top = first_argmax(logits)
        nll, surprise = log_prob.gather(-1, torch.stack([index, top], dim=-1)).neg_().unbind(-1)
        facts = {"nll": nll, "confidence": surprise.neg().exp_(), "correct": top == index}
        rows = {"log_prob": log_prob, "logits": logits.to(log_prob.dtype)} if self.plan.extra_scores else {}
        further = {name: score.function(rows[score.of], index) for name, score in self.plan.extra_scores.items()}
        return facts | self._loss(log_prob, nll, index) | further

    def _loss(self, log_prob: Tensor, nll: Tensor, index: Tensor) -> dict[str, Tensor]:
        """(1 − ε) w_y nll + ε/V Σ_c w_c (−ln p_c), and w_y; nothing where neither option is used."""
        smoothing, class_weight = self.plan.label_smoothing, self.plan.class_weight
        if not smoothing and class_weight is None:
            return {}
        ones = torch.ones(self.plan.vocab_size, dtype=torch.float64, device=nll.device)
        weights = (ones if class_weight is None else class_weight).to(nll.dtype)
        loss_weight = weights[index]
        loss = (1 - smoothing) * loss_weight * nll
        if smoothing:
            loss = loss - smoothing / self.plan.vocab_size * (log_prob * weights).sum(-1)
        return {"loss": loss, "loss_weight": loss_weight}

    def _soft(self, logits: Tensor, soft: Tensor) -> dict[str, Tensor]:
        """The same for rows whose target is a distribution."""
        log_prob = self._log_prob(logits)
        top = first_argmax(logits)
        confidence = log_prob.gather(-1, top[:, None]).squeeze(-1).exp()
        soft = soft.to(log_prob.dtype)
        terms = torch.where(soft > 0, soft * log_prob, 0.0)  # 0 ln 0 = 0
        facts = {"nll": -terms.sum(-1), "confidence": confidence, "correct": top == soft.argmax(-1)}
        smoothing, class_weight = self.plan.label_smoothing, self.plan.class_weight
        if not smoothing and class_weight is None:
            return facts
        smooth = (1 - smoothing) * terms
        if smoothing:
            smooth = smooth + smoothing / self.plan.vocab_size * log_prob
        if class_weight is not None:
            smooth = smooth * class_weight.to(log_prob.dtype)
        loss = -smooth.sum(-1)
        return facts | {"loss": loss, "loss_weight": torch.ones_like(loss)}

    def _log_prob(self, logits: Tensor) -> Tensor:
        """ln p of a chunk, in float32 or wider."""
        if not _on_cpu(logits):
            return torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        terms, shifted = self._memory(2, logits)
        chunk = logits if logits.dtype == terms.dtype else terms.copy_(logits)
        torch.sub(chunk, chunk.amax(-1, keepdim=True), out=shifted)
        rest = _row_sums(torch.exp(shifted, out=terms)).log_()
        log_prob: Tensor = shifted.sub_(rest[:, None])
        return log_prob

    def _memory(self, count: int, chunk: Tensor) -> Tensor:
        """`count` times the memory of a chunk in float32 or wider, which the next chunk takes again."""
        rows = min(self.plan.chunk_rows, self.plan.counted.numel())
        wide = torch.promote_types(chunk.dtype, torch.float32)
        if self._taken is None or self.plan.extra_scores:  # an extra score may keep what it was given
            self._taken = torch.empty(count, rows, self.plan.vocab_size, dtype=wide)
        return self._taken[:, : len(chunk)]

    def scores(self) -> TokenScores:
        """The scores of all rows in the shape of the targets."""
        plan = self.plan
        if not self.parts:  # an empty batch: the fields are there, without rows
            self.add(torch.zeros(0, plan.vocab_size, device=plan.counted.device))
        columns = _joined(self.parts)
        valid = plan.counted & ~plan.invalid
        columns["correct"] &= valid & ~columns["nll"].isnan()  # argmax takes a nan for the largest
        for name in ("nll", "loss"):
            if name in columns:
                columns[name] = torch.where(plan.invalid, torch.nan, torch.where(plan.counted, columns[name], 0.0))
        for name, mask in {"confidence": plan.counted, "loss_weight": valid}.items():
            if name in columns:
                columns[name] = torch.where(mask, columns[name], 0.0)
        columns |= {"counted": plan.counted, "invalid": plan.invalid}
        given = {"target": plan.index, "num_bytes": plan.num_bytes}
        columns |= {name: value for name, value in given.items() if value is not None}
        extra_scores = {name: columns.pop(name) for name in plan.extra_scores}
        fields: dict[str, Any] = {name: value.reshape(plan.shape) for name, value in columns.items()}
        return TokenScores(
            **fields,
            weight=plan.weight,
            vocab_size=plan.vocab_size,
            ignore_index=plan.ignore_index if plan.soft is None else None,
            extra_scores={name: value.reshape(*plan.shape, *value.shape[1:]) for name, value in extra_scores.items()},
        )


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The columns of consecutive parts as one; none of no parts."""
    return {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def _on_cpu(logits: Tensor) -> bool:
    return logits.device.type == "cpu" and is_plain(logits)


def _row_sums(terms: Tensor) -> Tensor:
    """The sum of each row; torch would share one row alone among its threads, and so add it up in another order."""
    return terms.sum(-1) if len(terms) != 1 else torch.cat([terms, terms]).sum(-1)[:1]


def first_argmax(rows: Tensor, maxima: Tensor | None = None) -> Tensor:
    """`rows.argmax(-1)`, the first of equal maxima; on the CPU by blocks, several times as fast as torch's own.

    `maxima` are the largest of each block, if they are known, in any dtype that holds them.
    """
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        return rows.argmax(-1)
    if rows.shape[-1] < 2 * _ARGMAX_BLOCK:
        return rows.max(-1).indices
    maxima = block_maxima(rows) if maxima is None else maxima
    start = maxima.argmax(-1, keepdim=True) * _ARGMAX_BLOCK
    # The last block may be short: repeating its last column leaves the first maximum where it is.
    columns = (start + torch.arange(_ARGMAX_BLOCK, device=rows.device)).clamp_(max=rows.shape[-1] - 1)
    inside = rows.gather(-1, columns).max(-1, keepdim=True).indices
    return torch.squeeze(start + inside, -1)


def block_maxima(rows: Tensor) -> Tensor:
    """The largest of each block of columns, ``(rows, blocks)``; of few columns that of all."""
    whole = rows.shape[-1] // _ARGMAX_BLOCK * _ARGMAX_BLOCK
    if rows.shape[-1] < 2 * _ARGMAX_BLOCK:
        return rows.amax(-1, keepdim=True)
    maxima = torch.unflatten(rows[:, :whole], -1, (-1, _ARGMAX_BLOCK)).amax(-1)
    return maxima if whole == rows.shape[-1] else torch.cat([maxima, rows[:, whole:].amax(-1, keepdim=True)], dim=-1)
