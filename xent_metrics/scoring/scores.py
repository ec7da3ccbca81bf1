"""TokenScores: the scores of each row, from which every metric is computed.

    from xent_metrics import score_tokens
    scores = score_tokens(logits, target)        # one pass over the logits …
    cross_entropy.update(scores); accuracy.update(scores)   # … for any number of metrics

A row is a token, a document (if a host gives one loglikelihood per document), or a choice (the softmax over the
loglikelihoods of a multiple-choice question's answers). Rows that don't count stay in place, with `counted` False and
neutral values. So shapes don't depend on values, and nothing here waits for a device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from xent_metrics.errors import InvalidInputError, MissingScoreError
from xent_metrics.scoring.devices import widest_float

__all__ = ["ExtraScore", "RowKind", "TokenScores", "check_extra_score_names", "from_loglikelihoods"]

RowKind = Literal["token", "document", "choice"]

#: These models aren't known to lm-eval's own command.
_SCORING_MODELS = "`xent lm-eval run --model xent-hf …` (or `--model xent-torch …`)"
#: How to get a score that is missing.
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
    """A score that a metric needs of each row besides those of `TokenScores`, computed in the same pass.

    Args:
        function: called as ``function(log_prob, index)`` with the log-probabilities ``(rows, V)`` and the targets
            ``(rows,)`` of a chunk of rows, without gradients; a target is 0 if its row doesn't count. It returns
            ``(rows, *shape)``.
        shape: the shape of one row's score.
        of: with "logits", the function gets the logits in place of the log-probabilities, in float32 or wider.

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
    """Scores of each row. Every field has the shape of the targets, ``(…)``; real numbers are float32 or wider.

    Attributes:
        nll: −ln p(target), in nats; for a soft target q, −Σ_v q_v ln p_v. 0 if the row doesn't count.
        counted: False for rows that enter no sum: their target is ignored, or their weight is 0. Invalid rows count.
        confidence: the top-1 probability, max_v p_v.
        correct: whether the top-1 class is the target. Of equal maxima the first is the top-1 class, as in `argmax`.
        target: the target's id, 0 if the row doesn't count; None for soft targets.
        num_bytes: UTF-8 bytes of the row's text; 0 for special tokens.
        num_words: whitespace-separated words of the row's text.
        weight: the row's weight in every sum; None means 1.
        loss: the training loss under label smoothing or class weights, as `torch.nn.functional.cross_entropy` defines it.
        loss_weight: the divisor of that loss, the target's class weight.
        invalid: True if the target is out of range or not a distribution, the weight is negative or nan, or the entry of
            `token_bytes` is negative; nll is nan then.
        row_kind: "token", "document" or "choice".
        vocab_size: V; None for loglikelihoods.
        ignore_index: the target that was ignored; None if none could be (distributions, loglikelihoods).
        replicas: the global ranks that hold these same rows (logits sharded over the vocabulary). A metric that is summed
            over several of them counts the rows on the first.
        extra_scores: scores that metrics ask for through `TokenMetric.extra_scores`, by name: ``(…)`` or ``(…, K)``.

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
    #: What metrics derive from these scores and share, mostly exact sums; left out of copies.
    memo: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.row_kind not in get_args(RowKind):
            raise InvalidInputError(f"row_kind is one of {', '.join(get_args(RowKind))}; got {self.row_kind!r}")
        check_extra_score_names(self.extra_scores)
        for name, value in (self.fields() | dict(self.extra_scores)).items():
            if (value.shape[: self.nll.ndim] if name in self.extra_scores else value.shape) != self.nll.shape:
                raise InvalidInputError(
                    f"TokenScores.{name} has shape {tuple(value.shape)}; expected that of nll, {tuple(self.nll.shape)}"
                )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out `memo`: in another process its keys may be those of other sums."""
        return {**self.__dict__, "memo": {}}

    def fields(self) -> dict[str, Tensor]:
        """The tensors that are present, by name."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @property
    def prob(self) -> Tensor:
        """The probability of the target, exp(−nll); for a soft target q, the geometric mean of p weighted by q."""
        return torch.exp(-self.nll)

    @property
    def broken(self) -> Tensor:
        """True for rows with nll nan or an invalid target."""
        if "broken" not in self.memo:
            self.memo["broken"] = self.nll.isnan() if self.invalid is None else self.nll.isnan() | self.invalid
        return self.memo["broken"]

    @property
    def uncounted(self) -> Tensor:
        """True for rows that enter no sum."""
        if "uncounted" not in self.memo:
            self.memo["uncounted"] = ~self.counted
        return self.memo["uncounted"]

    @property
    def device(self) -> torch.device:
        """The device that the scores are on."""
        return self.nll.device

    @property
    def num_rows(self) -> int:
        """How many rows there are, over all dimensions."""
        return self.nll.numel()

    def __len__(self) -> int:
        """The size of the first dimension, as for tensors."""
        return len(self.nll)

    def require(self, names: Iterable[str], *, row_kinds: Iterable[RowKind], metric: str) -> None:
        """Check that a metric can be computed from these scores.

        Args:
            names: the fields and extra scores that it needs.
            row_kinds: the kinds of rows that it is defined for.
            metric: its name, for the message.

        Raises:
            MissingScoreError: a score is missing, or the rows are of another kind.
        """
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
        """`values` times the row weights, as the terms of a sum: 0 in rows that don't count, nan in `broken` rows.

        A broken row makes every sum nan, also counts of rows, and adds nothing to the sum's finite part. So the finite part
        is the sum over the other rows, and equals that of any metric which sums the same values.

        Args:
            values: ``(…)`` or ``(…, K)``. Their product with the weights is exact in float64. On a device without it, the
                product and whole numbers beyond 2^24 are rounded to float32.
        """
        rows = (*self.nll.shape, *[1] * (values.ndim - self.nll.ndim))
        if self.weight is not None:
            wide = widest_float(values.device)
            values = values.to(wide) * self.weight.to(wide).reshape(rows)
        elif values.dtype == torch.bool:
            values = values.float()  # neither bools nor whole numbers have a nan
        elif not values.is_floating_point():
            values = values.to(widest_float(values.device))
        return values.masked_fill(self.broken.reshape(rows), torch.nan).masked_fill(self.uncounted.reshape(rows), 0.0)

    def map(self, function: Callable[[Tensor], Tensor]) -> TokenScores:
        """A copy in which every tensor is replaced by `function(tensor)`."""
        extra_scores = {name: function(value) for name, value in self.extra_scores.items()}
        fields: dict[str, Any] = {name: function(value) for name, value in self.fields().items()}
        return dataclasses.replace(self, **fields, extra_scores=extra_scores)

    def to(self, device: torch.device | str) -> TokenScores:
        """A copy on `device`."""
        return self.map(lambda tensor: tensor.to(device))

    def flatten(self) -> TokenScores:
        """The same rows in one dimension, ``(N,)``."""
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
        """Scores without rows, for checks before any data is scored.

        Args:
            fields: the names of the fields to have besides `nll` and `counted`; all but `weight` by default.
            row_kind: "token", "document" or "choice".
            extra_scores: the extra scores to have.

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
        """All rows of `parts`, flattened, with the fields that every part has.

        A part without `weight` weighs 1; one without `invalid` has no invalid rows.

        Raises:
            InvalidInputError: row kinds, `replicas` or `ignore_index` differ.
        """
        kinds = {(part.row_kind, part.replicas) for part in parts}
        if len(kinds) != 1:
            raise InvalidInputError(f"cat needs scores of one row kind, on the same processes; got {sorted(kinds)}")
        ignored = sorted({part.ignore_index for part in parts if part.ignore_index is not None})
        if len(ignored) > 1:
            raise InvalidInputError(
                f"cat needs scores of one ignore_index; got {ignored}. Pass the same one to each score_tokens"
            )
        flat = [part.flatten() for part in parts]
        fields: dict[str, Any] = _cat_shared(_with_defaults([part.fields() for part in flat]))
        return TokenScores(
            **fields,
            row_kind=parts[0].row_kind,
            vocab_size=parts[0].vocab_size,
            ignore_index=ignored[0] if ignored else None,
            replicas=parts[0].replicas,
            extra_scores=_cat_shared([part.extra_scores for part in flat]),
        )


def check_extra_score_names(names: Iterable[str]) -> None:
    """Raise for an extra score that would hide a field of `TokenScores`.

    Raises:
        InvalidInputError: an extra score is called like a field.
    """
    if taken := sorted(_FIELD_NAMES.intersection(names)):
        raise InvalidInputError(f"an extra score is named {taken[0]!r}, as a field of TokenScores; choose another name")


_FIELD_NAMES = frozenset(f.name for f in dataclasses.fields(TokenScores))


def _with_defaults(parts: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The fields of each part, with the defaults of `weight` and `invalid` if another part has them."""
    optional = {name for part in parts for name in part.keys() & {"weight", "invalid"}}
    defaults = [{"weight": torch.ones_like(x["nll"]), "invalid": torch.zeros_like(x["counted"])} for x in parts]
    return [{name: default[name] for name in optional} | part for default, part in zip(defaults, parts, strict=True)]


def _cat_shared(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The columns that all parts have, concatenated."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0] if all(name in p for p in parts)}


def _wrong_row_kind(row_kind: RowKind, row_kinds: list[RowKind], metric: str) -> str:
    text = f"{metric} is defined over {' or '.join(row_kinds)} scores; got {row_kind} scores"
    if row_kind == "document":
        text += (
            ", one loglikelihood per document, as a stock lm-eval model gives them. For token scores use "
            f"{_SCORING_MODELS}; bits_per_byte, byte_perplexity and word_perplexity work without them"
        )
    return text


def from_loglikelihoods(
    loglikelihoods: Sequence[float] | Tensor,
    *,
    num_bytes: Sequence[int] | Tensor | None = None,
    num_words: Sequence[int] | Tensor | None = None,
    row_kind: RowKind = "document",
) -> TokenScores:
    """Scores from loglikelihoods that a host computed: nll = −loglikelihood, in float64.

    Args:
        loglikelihoods: ``(…)``, ≤ 0, in nats.
        num_bytes: ``(…)``, UTF-8 bytes of each row's text.
        num_words: ``(…)``, words of each row's text.
        row_kind: "token", "document" or "choice".

    Returns:
        `TokenScores` with nll, counted and the lengths.

    Raises:
        InvalidInputError: a length below 0.

    >>> from_loglikelihoods([-2.5], num_bytes=[4]).nll
    tensor([2.5000], dtype=torch.float64)
    """
    nll = -torch.as_tensor(loglikelihoods, dtype=torch.float64)
    lengths = {"num_bytes": num_bytes, "num_words": num_words}
    counted: dict[str, Any] = {
        name: torch.as_tensor(value, dtype=torch.int64) for name, value in lengths.items() if value is not None
    }
    for name, values in counted.items():
        if bool((values < 0).any()):
            raise InvalidInputError(f"{name} holds whole numbers from 0; got {int(values.min())}")
    return TokenScores(
        nll=nll,
        counted=torch.ones_like(nll, dtype=torch.bool),
        row_kind=row_kind,
        **counted,
    )
