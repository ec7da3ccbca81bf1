"""The loss by token position, by token frequency, and by a field of the document, from logged samples."""

from __future__ import annotations

import torch
from torch.nn.utils.rnn import pad_sequence

from xent_metrics.analysis.intervals import Interval, delta_interval
from xent_metrics.analysis.logged import HOW_TO_LOG_TOKENS, Tokens
from xent_metrics.analysis.runs import TaskRun
from xent_metrics.errors import ComparisonError
from xent_metrics.metrics import CrossEntropy
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.wrappers.grouping import Frequency, Grouping, Position

__all__ = ["by_domain", "by_frequency", "by_position"]

_EDGES = (0, 1, 4, 16, 64, 256, 1024, 4096)
_MOST_DOMAINS = 40


def by_position(task: TaskRun) -> tuple[list[str], list[Interval]]:
    """Cross entropy by ranges of the token's position in its document, with intervals over documents.

    Raises:
        ComparisonError: the tokens were not logged.
    """
    documents = _documents(task)
    longest = max(map(len, documents))
    return _by_group(Position([edge for edge in _EDGES if edge < longest]), documents)


def by_frequency(task: TaskRun) -> tuple[list[str], list[Interval]]:
    """Cross entropy by the token's number of occurrences in these documents, with intervals over documents.

    Raises:
        ComparisonError: the tokens were not logged.
    """
    documents = _documents(task)
    counts = torch.bincount(torch.tensor([i for tokens in documents for i in tokens.ids]))
    most = int(counts.max())
    return _by_group(Frequency([edge for edge in _EDGES if 0 < edge <= most], counts=counts), documents)


def by_domain(task: TaskRun, name: str, field: str) -> tuple[list[str], list[Interval]]:
    """The metric `name` by the value of a document field, with intervals over documents.

    Raises:
        ComparisonError: the documents have no such field, or their sums were not logged.
    """
    states = task.states(name)
    documents = [doc if isinstance(doc := sample.raw.get("doc"), dict) else {} for sample in task.samples]
    values = [document.get(field) for document in documents]
    if states is None or any(value is None for value in values):
        fields = sorted(documents[0]) if documents else []
        raise ComparisonError(
            f"task {task.name}: not every document has the field {field!r} and logged sums; its fields: {fields}"
        )
    labels = sorted({str(value) for value in values})
    if len(labels) > _MOST_DOMAINS:
        raise ComparisonError(
            f"task {task.name}: {field!r} has {len(labels)} different values in {len(values)} documents; expected at most "
            f"{_MOST_DOMAINS}. Pass a field that many documents share"
        )
    rows = {label: [i for i, value in enumerate(values) if str(value) == label] for label in labels}
    return labels, [delta_interval(task.metrics[name], states[rows[label]]) for label in labels]


def _documents(task: TaskRun) -> list[Tokens]:
    documents = [sample.tokens for sample in task.samples if sample.tokens]
    if not documents:
        raise ComparisonError(f"task {task.name}: no tokens in the samples; {HOW_TO_LOG_TOKENS}")
    return documents


def _by_group(grouping: Grouping, documents: list[Tokens]) -> tuple[list[str], list[Interval]]:
    """Cross entropy of each group over the documents that have tokens in it."""
    metric, groups = CrossEntropy(), len(grouping.labels)
    nll = torch.tensor([nll for tokens in documents for nll in tokens.nll], dtype=torch.float64)
    sizes = torch.tensor([len(tokens) for tokens in documents])
    rows = pad_sequence([torch.tensor(tokens.ids) for tokens in documents], batch_first=True)
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
