"""The documents of a report, packed for the page: each run's losses, tokens and choices, within a size budget.

There is one entry per document, shared by all runs that have it. To keep the page small, numbers are rounded to small
integers, and the texts of alternatives are indices into one list of words.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from xent_metrics.analysis.logged import Tokens, choices_in, context_in, text_in
from xent_metrics.analysis.runs import Run, TaskRun
from xent_metrics.analysis.samples import Sample
from xent_metrics.errors import MissingExtraError

try:
    from tqdm import tqdm  # type: ignore[import-untyped]
except ImportError as error:
    raise MissingExtraError("the report needs tqdm: pip install 'xent-metrics[analysis,plots]'") from error

__all__ = ["Packed", "document_loss", "pack_documents"]

_LONGEST_TEXT = 20_000  # characters shown of one document
_TEXT = 12_000_000  # characters in total, about 8 MB of the page
_TOKENS = 2_500_000  # tokens in total, about 7 MB
_WITH_ALTERNATIVES = 300_000  # tokens shown with alternatives, from the highest loss down, about 4 MB
_MOST_NLL = 1e4


@dataclass
class Packed:
    """Packed documents: base64 data, their number, and notes about what was left out."""

    data: str
    documents: int
    has_alternatives: bool
    notes: list[str]


@dataclass
class _Entry:
    """A document and its sample in each run, by the run's letter."""

    task: str
    number: int
    samples: dict[str, Sample] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """The sort key: the loss in the first run that has one."""
        losses = [document_loss(sample) for sample in self.samples.values()]
        return next((loss for loss in losses if not math.isnan(loss)), -math.inf)


def pack_documents(runs: Sequence[Run], letters: Sequence[str]) -> Packed:
    """Pack the documents of all runs and tasks, highest loss first."""
    entries = sorted(_entries(runs, letters), key=lambda entry: -entry.loss)
    views = max(1, sum(len(entry.samples) for entry in entries))
    packer = _Packer(min(_LONGEST_TEXT, _TEXT // views), _TOKENS // views)
    documents = [packer.document(entry) for entry in tqdm(entries, desc="Packing documents", disable=None)]
    content = {"words": list(packer.words), "documents": documents}
    plain = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="replace")
    data = base64.b64encode(gzip.compress(plain, mtime=0)).decode("ascii")
    return Packed(data, len(documents), packer.with_alternatives > 0, packer.notes())


def _entries(runs: Sequence[Run], letters: Sequence[str]) -> Iterator[_Entry]:
    found: dict[tuple[str, str], _Entry] = {}
    for run, letter in zip(runs, letters, strict=True):
        for task in run.tasks.values():
            _add_task(found, task, letter)
    yield from found.values()


def _add_task(found: dict[tuple[str, str], _Entry], task: TaskRun, letter: str) -> None:
    for number, sample in enumerate(task.samples):
        entry = found.setdefault((task.name, sample.key), _Entry(task.name, number))
        entry.samples[letter] = sample


def document_loss(sample: Sample) -> float:
    """The mean nll in nats per token; without tokens the logged sum of nats; otherwise nan."""
    if sample.tokens:
        return sample.tokens.mean_nll
    for sums in sample.all_sums():
        if nats := next((v for n, v in sums.items() if n.startswith("nats") and isinstance(v, float)), None):
            return nats
    return math.nan


class _Packer:
    def __init__(self, longest_text: int, most_tokens: int) -> None:
        self.longest_text, self.most_tokens = longest_text, most_tokens
        self.words: dict[str, int] = {}
        self.with_alternatives = 0
        self.cut = self.without_alternatives = 0

    def document(self, entry: _Entry) -> dict[str, Any]:
        """The page's entry for one document."""
        first = next(iter(entry.samples.values()))
        shown: dict[str, Any] = {"task": entry.task, "number": entry.number}
        if context := context_in(first.raw)[-self.longest_text :]:
            shown["context"] = context
        if choices := choices_in(first.raw):
            shown["choices"] = [choice.text for choice in choices]
            shown["gold"] = next((index for index, choice in enumerate(choices) if choice.is_gold), None)
        if not any(sample.tokens for sample in entry.samples.values()):
            shown["text"] = self._cut_text(text_in(first.raw))
        shown["runs"] = {letter: self._view(sample) for letter, sample in entry.samples.items()}
        return shown

    def _view(self, sample: Sample) -> dict[str, Any]:
        loss = document_loss(sample)
        view: dict[str, Any] = {} if math.isnan(loss) else {"loss": round(min(loss, _MOST_NLL), 3)}
        if choices := choices_in(sample.raw):
            view["choices"] = [_number(choice.loglikelihood) for choice in choices]
        if sample.tokens:
            view |= self._tokens(sample.tokens)
        return view

    def _tokens(self, tokens: Tokens) -> dict[str, Any]:
        texts, lengths, total = [], [], 0
        for text in tokens.texts[: self.most_tokens]:
            total += len(text)
            if total > self.longest_text:
                break
            texts.append(text)
            lengths.append(_utf16_length(text))
        count = len(texts)
        self.cut += count < len(tokens)
        view = {"text": "".join(texts), "lengths": lengths}
        view["nll"] = [round(100 * min(nll, _MOST_NLL)) if not math.isnan(nll) else -1 for nll in tokens.nll[:count]]
        if tokens.alternatives:
            view |= self._alternatives(tokens, count)
        return view

    def _alternatives(self, tokens: Tokens, count: int) -> dict[str, Any]:
        """For each token a flat list of pairs: the index of a word, and its probability in per mille."""
        if self.with_alternatives + count > _WITH_ALTERNATIVES:
            self.without_alternatives += 1
            return {}
        self.with_alternatives += count
        return {
            "likely": [
                [number for text, share in likely for number in (self._word(text), round(1000 * share))]
                for likely in tokens.alternatives[:count]
            ]
        }

    def _word(self, text: str) -> int:
        return self.words.setdefault(text, len(self.words))

    def _cut_text(self, text: str) -> str:
        self.cut += len(text) > self.longest_text
        return text[: self.longest_text]

    def notes(self) -> list[str]:
        """Sentences about what was left out to keep the page small."""
        notes = []
        if self.cut:
            notes.append(
                f"{self.cut:,} texts are truncated to {self.longest_text:,} characters or {self.most_tokens:,} tokens."
            )
        if self.without_alternatives:
            notes.append(
                "Likely alternatives are shown only for the documents with the highest loss; "
                f"{self.without_alternatives:,} others have none."
            )
        return notes


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(max(value, -_MOST_NLL), 3)


def _utf16_length(text: str) -> int:
    """The length of a string in JavaScript."""
    return len(text.encode("utf-16-le", errors="surrogatepass")) // 2
