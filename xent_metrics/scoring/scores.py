"""TokenScores: the per-token facts that every metric is a function of.

A row is a token, a document (a host that gives one loglikelihood a document) or a choice (the softmax over the
loglikelihoods of a multiple-choice question's answers). Rows that don't count stay in place, with `counted` False
and neutral values: shapes never depend on data, so nothing here waits for a device.

    from xent_metrics import score_tokens
    scores = score_tokens(logits, target)        # one pass over the logits …
    cross_entropy.update(scores); accuracy.update(scores)   # … for any number of metrics
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from xent_metrics.errors import InvalidInputError, MissingScoreError

__all__ = ["ExtraScore", "RowKind", "TokenScores", "from_loglikelihoods"]

RowKind = Literal["token", "document", "choice"]

#: lm-eval's own command knows neither model.
_SCORING_MODELS = "`xent lm-eval run --model xent-hf …` (or `--model xent-torch …`)"
#: What to change, in each host, so that a missing score is there.
_HOW_TO_GET = {
    "confidence": f"score logits (score_tokens); in lm-eval use {_SCORING_MODELS}",
    "correct": f"score logits (score_tokens); in lm-eval use {_SCORING_MODELS}",
    "num_bytes": "pass `token_bytes=token_bytes(tokenizer)` to the metric or to score_tokens",
    "num_words": "pass `dataclasses.replace(scores, num_words=…)`, or use the metric in an lm-eval task, which knows the text",
    "target": "score integer targets rather than distributions",
    "group": "pass update(…, group=ids), or scores from in_groups(scores, ids)",
    "loss": "pass `label_smoothing` or `class_weight` to score_tokens, or update the metric with logits",
}
_HOW_TO_GET_EXTRA = "update the metric with logits, or pass `extra_scores=metric.extra_scores()` to score_tokens"


@dataclass(frozen=True)
class ExtraScore:
    """An extra score of each row: ``function(log_prob (rows, V), index (rows,))`` gives ``(rows, *shape)``.

    It is called a chunk of rows at a time, without gradients; `index` holds the targets (0 where not counted).
    With ``of="logits"`` it gets the logits themselves, in float32 or wider.

    >>> from xent_metrics import score_tokens
    >>> entropy = ExtraScore(lambda log_prob, index: -(log_prob.exp() * log_prob).sum(-1))
    >>> score_tokens(torch.zeros(2, 8), torch.tensor([1, 2]), extra_scores={"entropy": entropy}).extra_scores["entropy"]
    tensor([2.0794, 2.0794])
    """

    function: Callable[[Tensor, Tensor], Tensor]
    shape: tuple[int, ...] = ()
    of: Literal["log_prob", "logits"] = "log_prob"


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Per-row scores; every field has the shape of the targets, ``(…)``, float32 or wider where it is a real number.

    Attributes:
        nll: −ln p(target), in nats; for a soft target q, −Σ_v q_v ln p_v. 0 where not counted.
        counted: whether the row enters any sum (not ignored and valid). Invalid rows stay counted, with nll nan.
        confidence: the top-1 probability, max_v p_v.
        correct: whether the top-1 class is the target (the first of equal maxima, as `argmax` decides).
        target: the target's id, 0 where not counted; None for soft targets.
        num_bytes: UTF-8 bytes of the row's text; 0 for special tokens.
        num_words: whitespace-separated words of the row's text.
        weight: the row's weight in every sum; None is 1.
        loss: the training loss under label smoothing or class weights, as `torch.nn.functional.cross_entropy` defines it.
        loss_weight: what that loss is divided by (the target's class weight).
        invalid: rows whose target is out of range or not a distribution.
        row_kind: what a row is.
        vocab_size: V, where logits were scored.
        ignore_index: the target that was left out; None where no target could be (distributions, loglikelihoods).
        replicas: the global ranks that hold these same rows (logits sharded over the vocabulary): a metric that is summed
            over several of them counts the rows on the first.
        extra_scores: extra scores by name, ``(…)`` or ``(…, K)``, that metrics ask for through `TokenMetric.extra_scores`.

    >>> from xent_metrics import score_tokens
    >>> scores = score_tokens(torch.zeros(1, 3, 4), torch.tensor([[0, 1, -100]]))
    >>> scores.nll                                      # uniform over 4 classes: ln 4
    tensor([[1.3863, 1.3863, 0.0000]])
    >>> scores.prob.shape, scores.row_kind
    (torch.Size([1, 3]), 'token')
    """

    nll: Tensor
    counted: Tensor
    confidence: Tensor | None = None
    correct: Tensor | None = None
    target: Tensor | None = None
    num_bytes: Tensor | None = None
    num_words: Tensor | None = None
    weight: Tensor | None = None
    loss: Tensor | None = None
    loss_weight: Tensor | None = None
    invalid: Tensor | None = None
    row_kind: RowKind = "token"
    vocab_size: int | None = None
    ignore_index: int | None = None
    replicas: tuple[int, ...] = ()
    extra_scores: Mapping[str, Tensor] = field(default_factory=dict)
    #: What metrics have derived from these scores, kept for each other: exact sums above all.
    memo: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.row_kind not in get_args(RowKind):
            raise InvalidInputError(f"row_kind is one of {', '.join(get_args(RowKind))}; got {self.row_kind!r}")
        for name, value in (self.fields() | dict(self.extra_scores)).items():
            if (value.shape[: self.nll.ndim] if name in self.extra_scores else value.shape) != self.nll.shape:
                raise InvalidInputError(
                    f"TokenScores.{name} has shape {tuple(value.shape)}; expected that of nll, {tuple(self.nll.shape)}"
                )

    def fields(self) -> dict[str, Tensor]:
        """The tensors that are present, by name."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @property
    def prob(self) -> Tensor:
        """The probability of the target, exp(−nll); for a soft target its q-weighted geometric mean."""
        return torch.exp(-self.nll)

    @property
    def broken(self) -> Tensor:
        """The rows that nothing can be said of: their nll is nan, or their target invalid."""
        return self.nll.isnan() if self.invalid is None else self.nll.isnan() | self.invalid

    @property
    def device(self) -> torch.device:
        return self.nll.device

    def __len__(self) -> int:
        return self.nll.numel()

    def require(self, names: Iterable[str], *, row_kinds: Iterable[RowKind], metric: str) -> None:
        """Raise `MissingScoreError` unless the fields `names` are present and a row is one of `row_kinds`."""
        if self.row_kind not in row_kinds:
            raise MissingScoreError(_wrong_row_kind(self.row_kind, sorted(row_kinds), metric))
        present = self.fields().keys() | self.extra_scores.keys()
        for name in sorted(set(names)):
            if name != "prob" and name not in present:
                raise MissingScoreError(
                    f"{metric} needs `{name}`, which these {self.row_kind} scores don't have: "
                    f"{_HOW_TO_GET.get(name, _HOW_TO_GET_EXTRA)}"
                )

    def weighted(self, values: Tensor) -> Tensor:
        """`values`, ``(…)`` or ``(…, K)``, times the row weights (exact in float64), 0 where the row doesn't count.

        A `broken` row adds nan to every sum, counts of rows among them, and nothing else: the sums' finite parts are those
        of all other rows, and a sum of one name is the same in every metric.
        """
        rows = (*self.nll.shape, *[1] * (values.ndim - self.nll.ndim))
        if self.weight is not None:
            values = values.double() * self.weight.double().reshape(rows)
        elif not values.is_floating_point():
            values = values.double()  # whole numbers have no nan
        values = torch.where(self.broken.reshape(rows), torch.nan, values)
        return torch.where(self.counted.reshape(rows), values, torch.zeros_like(values))

    def map(self, function: Callable[[Tensor], Tensor]) -> TokenScores:
        """A copy with `function(tensor)` in place of every tensor."""
        extra_scores = {name: function(value) for name, value in self.extra_scores.items()}
        fields: dict[str, Any] = {name: function(value) for name, value in self.fields().items()}
        return dataclasses.replace(self, **fields, extra_scores=extra_scores)

    def to(self, device: torch.device | str) -> TokenScores:
        """A copy on `device`."""
        return self.map(lambda tensor: tensor.to(device))

    def flatten(self) -> TokenScores:
        """The same rows as one dimension, ``(N,)``."""
        return self.map(lambda tensor: tensor.reshape(-1, *tensor.shape[self.nll.ndim :]))

    def __getitem__(self, index: Any) -> TokenScores:
        """The rows at `index`, as in ``scores[3]`` or ``scores[:, 10:]``."""
        return self.map(lambda tensor: tensor[index])

    @classmethod
    def empty(
        cls,
        fields: Iterable[str] | None = None,
        *,
        row_kind: RowKind = "token",
        extra_scores: Mapping[str, ExtraScore] | None = None,
    ) -> TokenScores:
        """Scores without rows: what a host would give, before it gives any; what a metric makes of them is its layout.

        Args:
            fields: the names of the fields that are present besides `nll` and `counted`; all but `weight` by default.
            row_kind: what a row would be.
            extra_scores: the extra scores that would have been asked for.

        >>> TokenScores.empty(["num_bytes"], row_kind="document").fields().keys()
        dict_keys(['nll', 'counted', 'num_bytes'])
        """
        dtypes = {"counted": torch.bool, "correct": torch.bool, "invalid": torch.bool} | dict.fromkeys(
            ("target", "num_bytes", "num_words"), torch.int64
        )
        tensors = [
            f.name for f in dataclasses.fields(cls) if f.init and "Tensor" in str(f.type) and f.name != "extra_scores"
        ]
        chosen = [name for name in tensors if name != "weight"] if fields is None else ["nll", "counted", *fields]
        return cls(
            **{name: torch.zeros(0, dtype=dtypes.get(name, torch.float32)) for name in chosen},  # type: ignore[arg-type]
            row_kind=row_kind,
            extra_scores={name: torch.zeros(0, *score.shape) for name, score in (extra_scores or {}).items()},
        )

    @staticmethod
    def cat(parts: Sequence[TokenScores]) -> TokenScores:
        """All rows of `parts`, flattened, with the fields that every part has (a part without weights weighs 1)."""
        kinds = {(part.row_kind, part.replicas) for part in parts}
        if len(kinds) != 1:
            raise InvalidInputError(f"cat needs scores of one row kind, on the same processes; got {sorted(kinds)}")
        ignored = sorted({part.ignore_index for part in parts if part.ignore_index is not None})
        if len(ignored) > 1:
            raise InvalidInputError(
                f"cat needs scores of one ignore_index; got {ignored}. Pass the same one to each score_tokens"
            )
        flat = [part.flatten() for part in parts]
        rows = [part.fields() for part in flat]
        for row in rows:  # what absence means, spelt out where another part has the field
            absent = {"weight": torch.ones_like(row["nll"]), "invalid": torch.zeros_like(row["counted"])}
            row |= {name: value for name, value in absent.items() if name not in row and any(name in r for r in rows)}
        shared = [name for name in rows[0] if all(name in row for row in rows)]
        joined: dict[str, Any] = {name: torch.cat([row[name] for row in rows]) for name in shared}
        extra_scores = {
            n: torch.cat([p.extra_scores[n] for p in flat])
            for n in flat[0].extra_scores
            if all(n in p.extra_scores for p in flat)
        }
        first = parts[0]
        return TokenScores(
            **joined,
            row_kind=first.row_kind,
            vocab_size=first.vocab_size,
            ignore_index=ignored[0] if ignored else None,
            replicas=first.replicas,
            extra_scores=extra_scores,
        )


def _wrong_row_kind(row_kind: RowKind, row_kinds: list[RowKind], metric: str) -> str:
    text = f"{metric} is defined over {' or '.join(row_kinds)} scores; got {row_kind} scores"
    if row_kind == "document":
        text += (
            ", one loglikelihood a document, as a stock lm-eval model gives them. For token scores use "
            f"{_SCORING_MODELS}; without them bits_per_byte, byte_perplexity and word_perplexity work"
        )
    return text


def from_loglikelihoods(
    loglikelihoods: Sequence[float] | Tensor,
    *,
    num_bytes: Sequence[int] | Tensor | None = None,
    num_words: Sequence[int] | Tensor | None = None,
    row_kind: RowKind = "document",
) -> TokenScores:
    """Scores of loglikelihoods (≤ 0, in nats) that a host computed: nll = −loglikelihood, kept in float64.

    >>> from_loglikelihoods([-2.5], num_bytes=[4]).nll
    tensor([2.5000], dtype=torch.float64)
    """
    nll = -torch.as_tensor(loglikelihoods, dtype=torch.float64)
    lengths = {"num_bytes": num_bytes, "num_words": num_words}
    counted: dict[str, Any] = {
        name: torch.as_tensor(value, dtype=torch.int64) for name, value in lengths.items() if value is not None
    }
    return TokenScores(
        nll=nll,
        counted=torch.ones_like(nll, dtype=torch.bool),
        row_kind=row_kind,
        **counted,
    )
