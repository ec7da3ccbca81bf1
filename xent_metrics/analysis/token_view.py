"""The tokens of logged documents: their text and nll, from samples written with `log_tokens=true`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ..errors import ComparisonError
from ..grouped import Frequency, Grouping, Position
from ..metrics import CrossEntropy
from ..scores import TokenScores
from .intervals import Interval, delta_interval
from .runs import Sample, TaskRun

__all__ = ["Token", "by_domain", "by_frequency", "by_position", "tokens_of"]

_EDGES = (0, 1, 4, 16, 64, 256, 1024, 4096)


@dataclass(frozen=True)
class Token:
    """One token of a document: its text, nll in nats, and what the model held likelier or nearly as likely."""

    text: str
    nll: float
    id: int | None = None
    alternatives: Sequence[tuple[str, float]] = ()


def tokens_of(sample: Sample) -> list[Token] | None:
    """The tokens of the document (of the gold continuation, where there are choices); None where they were not logged."""
    gold = sample.raw.get("target")
    responses = list(_logged(sample.raw.get("resps")))
    if not responses:
        return None
    chosen = responses[gold] if isinstance(gold, int) and 0 <= gold < len(responses) else responses[0]
    return [_token(entry) for entry in chosen["tokens"]]


def _logged(responses: Any) -> Iterator[Mapping[str, Any]]:
    """Every logged result in lm-eval's nested lists of strings."""
    if isinstance(responses, list):
        for part in responses:
            yield from _logged(part)
    elif isinstance(responses, str) and responses.startswith("{"):
        try:
            found = json.loads(responses)
        except ValueError:
            return
        if isinstance(found, dict) and isinstance(found.get("tokens"), list):
            yield found


def _token(entry: Mapping[str, Any]) -> Token:
    likely = entry.get("alternatives") or []
    alternatives = [(str(text), float(probability)) for text, probability in likely]
    return Token(str(entry["text"]), float(entry["nll"]), entry.get("id"), alternatives)


def by_position(task: TaskRun) -> tuple[list[str], list[Interval]]:
    """Cross entropy in ranges of the token's place in its document, each with its interval over documents.

    Raises:
        ComparisonError: the tokens were not logged.
    """
    documents = _documents(task)
    longest = max(map(len, documents))
    return _by(Position([edge for edge in _EDGES if edge < longest]), documents)


def by_frequency(task: TaskRun) -> tuple[list[str], list[Interval]]:
    """Cross entropy by how often the token occurs in these documents, each with its interval over documents.

    Raises:
        ComparisonError: the tokens were not logged.
    """
    documents = _documents(task)
    counts = torch.bincount(torch.tensor([token.id or 0 for tokens in documents for token in tokens]))
    most = int(counts.max())
    return _by(Frequency([edge for edge in _EDGES if 0 < edge <= most], counts=counts), documents)


def by_domain(task: TaskRun, name: str, field: str) -> tuple[list[str], list[Interval]]:
    """The metric `name` by the value of a field of the documents, each with its interval over documents.

    Raises:
        ComparisonError: the documents have no such field, or their sums were not logged.
    """
    states = task.states(name)
    values = [sample.raw.get("doc", {}).get(field) for sample in task.samples]
    if states is None or any(value is None for value in values):
        fields = sorted(task.samples[0].raw.get("doc", {})) if task.samples else []
        raise ComparisonError(f"task {task.name}: not every document has {field!r} and logged sums; fields: {fields}")
    labels = sorted({str(value) for value in values})
    rows = {label: [i for i, value in enumerate(values) if str(value) == label] for label in labels}
    return labels, [delta_interval(task.metrics[name], states[rows[label]]) for label in labels]


def _documents(task: TaskRun) -> list[list[Token]]:
    documents = [tokens for sample in task.samples if (tokens := tokens_of(sample))]
    if not documents:
        raise ComparisonError(
            f"task {task.name}: no tokens in the samples; evaluate with --model xent-hf, "
            "--model_args …,log_tokens=true and --log_samples"
        )
    return documents


def _by(grouping: Grouping, documents: list[list[Token]]) -> tuple[list[str], list[Interval]]:
    """Cross entropy of each group, over the documents that have tokens in it."""
    metric, groups = CrossEntropy(), len(grouping.labels)
    nll = torch.tensor([token.nll for tokens in documents for token in tokens], dtype=torch.float64)
    sizes = torch.tensor([len(tokens) for tokens in documents])
    rows = pad_sequence([torch.tensor([token.id or 0 for token in tokens]) for tokens in documents], batch_first=True)
    inside = torch.arange(rows.shape[1]) < sizes[:, None]  # (D, T)
    scores = TokenScores(nll=torch.zeros(rows.shape), counted=inside, target=rows)
    cells = (torch.arange(len(documents))[:, None] * groups + grouping(scores))[inside]
    sums = {"nats": nll, "tokens": torch.ones_like(nll)}
    by_cell = {n: torch.zeros(len(documents) * groups).double().index_add(0, cells, v) for n, v in sums.items()}
    states = metric.pack({name: values.reshape(-1, groups) for name, values in by_cell.items()})  # (D, groups, rows, 8)
    tokens = by_cell["tokens"].reshape(-1, groups)
    filled = [group for group in range(groups) if bool(tokens[:, group].any())]
    intervals = [delta_interval(metric, states[tokens[:, group] > 0, group]) for group in filled]
    return [grouping.labels[group] for group in filled], intervals
