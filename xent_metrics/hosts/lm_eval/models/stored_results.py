"""A result of a model as JSON, and back with the same bits: what `--resume` keeps of each request.

Tensors are written as their bytes. No pickle is read, so that a file can hold no code.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xent_metrics.hosts.lm_eval.models.logged_tokens import LoggedFloat, LoggedLoglikelihood, LoggedRolling
from xent_metrics.hosts.lm_eval.models.results import ScoredLoglikelihood, ScoredRolling, ScoredText
from xent_metrics.scoring.scores import TokenScores

__all__ = ["result_of", "stored"]

_DTYPES = {str(dtype): dtype for dtype in (torch.bool, torch.int64, torch.int32, torch.float32, torch.float64)}


def stored(result: Any) -> Any:
    """What JSON can hold of a result; `result_of` gives it back.

    >>> stored((-1.5, True)), stored("so")
    ({'loglikelihood': [-1.5, True]}, {'text': 'so'})

    Raises:
        TypeError: it is no result of a kind that is known.
    """
    if isinstance(result, ScoredText):
        return {"text": str(result), "scored": stored(result.loglikelihood)}
    if isinstance(result, str):
        return {"text": str(result)}
    kind = "rolling" if isinstance(result, float) else "loglikelihood"
    if isinstance(result, ScoredLoglikelihood | ScoredRolling):
        listed = result[0] if isinstance(result, ScoredLoglikelihood) else result
        found: dict[str, Any] = {kind: _stored_scores(result.scores)}
        if isinstance(listed, LoggedFloat):
            found |= {"tokens": listed.tokens, "in_parquet": listed.in_parquet}
        return found
    if kind == "rolling":
        return {kind: float(result)}
    if isinstance(result, tuple | list) and len(result) == 2:
        return {kind: [float(result[0]), bool(result[1])]}
    raise TypeError(f"{type(result).__name__} is no result of a loglikelihood or a generation")


def result_of(found: Mapping[str, Any]) -> Any:
    """The result that was `stored`.

    >>> result_of(stored((-1.5, True)))
    (-1.5, True)

    Raises:
        ValueError, KeyError, TypeError: it is damaged.
    """
    if "text" in found:
        text = str(found["text"])
        return ScoredText(text, result_of(found["scored"])) if "scored" in found else text
    rolling = "rolling" in found
    value = found["rolling" if rolling else "loglikelihood"]
    if not isinstance(value, dict):
        return float(value) if rolling else (float(value[0]), bool(value[1]))
    scores = _scores_of(value)
    if "tokens" in found:
        in_parquet = bool(found.get("in_parquet"))
        return (LoggedRolling if rolling else LoggedLoglikelihood)(scores, found["tokens"], in_parquet)
    return (ScoredRolling if rolling else ScoredLoglikelihood)(scores)


def _stored_scores(scores: TokenScores) -> dict[str, Any]:
    plain = {each.name: getattr(scores, each.name) for each in dataclasses.fields(scores) if each.init}
    others = {name: value for name, value in plain.items() if name != "extra_scores" and not isinstance(value, Tensor)}
    tensors = {name: _stored_tensor(value) for name, value in scores.fields().items()}
    extra = {name: _stored_tensor(value) for name, value in scores.extra_scores.items()}
    return {"tensors": tensors, "extra_scores": extra, "others": {n: v for n, v in others.items() if v is not None}}


def _scores_of(found: Mapping[str, Any]) -> TokenScores:
    others = found["others"] | {"replicas": tuple(found["others"].get("replicas", ()))}
    tensors: dict[str, Any] = {name: _tensor_of(value) for name, value in found["tensors"].items()}
    extra = {name: _tensor_of(value) for name, value in found["extra_scores"].items()}
    return TokenScores(**tensors, extra_scores=extra, **others)


def _stored_tensor(tensor: Tensor) -> list[Any]:
    if str(tensor.dtype) not in _DTYPES:
        raise TypeError(f"scores of {tensor.dtype}; expected {', '.join(_DTYPES)}")
    data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return [str(tensor.dtype), list(tensor.shape), base64.b64encode(data).decode()]


def _tensor_of(found: Any) -> Tensor:
    dtype, shape, data = found
    flat = torch.frombuffer(bytearray(base64.b64decode(data, validate=True)), dtype=torch.uint8) if data else None
    if flat is None:
        return torch.empty(shape, dtype=_DTYPES[dtype])
    return flat.view(_DTYPES[dtype]).reshape(shape)
