"""The documents of a report, packed for the page: each run's losses, tokens and choices, within a size budget.

There is one entry per document, shared by all runs that have it. The documents with the highest loss are chosen first, from
columns of numbers alone; only their texts and tokens are then read. To keep the page small, numbers are rounded to small
integers, and the texts of alternatives are indices into one list of words.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xent_metrics.analysis.document_losses import document_losses
from xent_metrics.analysis.logged import Tokens, choices_in, context_in, text_in
from xent_metrics.analysis.progress import progress_bar
from xent_metrics.analysis.runs import Run, TaskRun
from xent_metrics.analysis.samples import Keys, Sample, keys_of, samples_at

__all__ = ["Packed", "pack_documents"]

_DOCUMENTS = 20_000  # listed, from the highest loss down
_LONGEST_TEXT = 20_000  # characters shown of one document
_TEXT = 12_000_000  # characters in total, about 8 MB of the page
_TOKENS = 2_500_000  # tokens in total, about 7 MB
_WITH_ALTERNATIVES = 300_000  # tokens shown with alternatives, from the highest loss down, about 4 MB
_MOST_NLL = 1e4
_Array = np.ndarray[Any, Any]


@dataclass
class Packed:
    """Packed documents: base64 data, their number, and notes about what was left out."""

    data: str
    documents: int
    has_alternatives: bool
    notes: list[str]


@dataclass
class _Entry:
    """A document that is shown, and its place among each run's samples, by the run's letter."""

    task: str
    number: int
    places: dict[str, int]
    shown: dict[str, Any] = field(default_factory=dict)
    with_alternatives: frozenset[str] = frozenset()


@dataclass
class _Column:
    """What the order needs to know of one task in one run: each document's key, loss and number of tokens."""

    task: TaskRun
    letter: str
    keys: Keys
    losses: _Array
    sizes: _Array

    @classmethod
    def of(cls, task: TaskRun, letter: str) -> _Column:
        losses, sizes = document_losses(task)
        return cls(task, letter, keys_of(task.samples), losses, sizes)


def pack_documents(runs: Sequence[Run], letters: Sequence[str]) -> Packed:
    """Pack the documents with the highest loss of all runs and tasks, highest first."""
    columns = [
        _Column.of(task, letter) for run, letter in zip(runs, letters, strict=True) for task in run.tasks.values()
    ]
    entries, number = _highest(columns)
    views = max(1, sum(len(entry.places) for entry in entries))
    packer = _Packer(min(_LONGEST_TEXT, _TEXT // views), _TOKENS // views)
    packer.allow_alternatives(entries, columns)
    with progress_bar("Packing documents", views, "documents") as bar:
        for column in columns:
            own = [entry for entry in entries if entry.task == column.task.name and column.letter in entry.places]
            own.sort(key=lambda entry: entry.places[column.letter])  # rising, so that a file is read in its order
            places = [entry.places[column.letter] for entry in own]
            for entry, place, sample in zip(own, places, samples_at(column.task.samples, places), strict=True):
                packer.add(entry, column.letter, sample, float(column.losses[place]))
                bar.update()
    documents = [packer.document(entry) for entry in entries]
    content = {"words": list(packer.words), "documents": documents}
    plain = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="replace")
    data = base64.b64encode(gzip.compress(plain, compresslevel=5, mtime=0)).decode("ascii")
    left_out = number - len(documents)
    notes = [f"Of {number:,} documents, the {len(documents):,} with the highest loss are listed."] if left_out else []
    return Packed(data, len(documents), packer.has_alternatives, notes + packer.notes())


def _highest(columns: Sequence[_Column]) -> tuple[list[_Entry], int]:
    """The documents to show, highest loss first, and how many there are in all.

    The loss is that in the first run that has one; documents without come last.
    """
    tasks = list(dict.fromkeys(column.task.name for column in columns))
    joined = [_joined([column for column in columns if column.task.name == task]) for task in tasks]
    losses = np.concatenate([losses for losses, _ in joined]) if joined else np.zeros(0)
    of_task = np.repeat(np.arange(len(joined)), [len(own) for own, _ in joined])
    begins = np.cumsum([0, *(len(own) for own, _ in joined)])
    entries = []
    for place in np.argsort(-losses, kind="stable")[:_DOCUMENTS].tolist():
        task = int(of_task[place])
        places = {letter: int(found[place - begins[task]]) for letter, found in joined[task][1].items()}
        places = {letter: found for letter, found in places.items() if found >= 0}
        entries.append(_Entry(tasks[task], next(iter(places.values())), places))
    return entries, len(losses)


def _joined(columns: Sequence[_Column]) -> tuple[_Array, dict[str, _Array]]:
    """The loss of each document of a task, and its place in each run, −1 for none, in the order in which they come up."""
    every = np.concatenate([column.keys for column in columns])
    keys, first = np.unique(every, return_index=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(keys), dtype=np.int64)
    rank[order] = np.arange(len(keys))
    losses, places = np.full(len(keys), math.nan), {}
    for column in columns:
        at = rank[np.searchsorted(keys, column.keys)]
        places[column.letter] = np.full(len(keys), -1)
        places[column.letter][at] = np.arange(len(at))
        known = np.isnan(losses[at])
        losses[at[known]] = column.losses[known]
    return np.where(np.isnan(losses), -math.inf, losses), places


class _Packer:
    def __init__(self, longest_text: int, most_tokens: int) -> None:
        self.longest_text, self.most_tokens = longest_text, most_tokens
        self.words: defaultdict[str, int] = defaultdict()
        self.words.default_factory = self.words.__len__  # a new word gets the next index
        self.has_alternatives = False
        self.cut = self.without_alternatives = 0

    def allow_alternatives(self, entries: Sequence[_Entry], columns: Sequence[_Column]) -> None:
        """Choose the documents whose alternatives are shown, from the first on, as far as the budget goes."""
        sizes = {(column.task.name, column.letter): column.sizes for column in columns}
        left = _WITH_ALTERNATIVES
        for entry in entries:
            chosen = set()
            for letter, place in entry.places.items():
                count = min(int(sizes[entry.task, letter][place]), self.most_tokens)
                if count <= left:
                    left -= count
                    chosen.add(letter)
            entry.with_alternatives = frozenset(chosen)

    def add(self, entry: _Entry, letter: str, sample: Sample, loss: float) -> None:
        """Add what one run says of a document, and of its text what the first run says."""
        if letter == next(iter(entry.places)):
            entry.shown = self._about(entry, sample.raw)
        entry.shown["runs"][letter] = self._view(sample, loss, letter in entry.with_alternatives)

    def document(self, entry: _Entry) -> dict[str, Any]:
        """The page's entry for one document."""
        shown = entry.shown
        text = shown.pop("text")
        if not any("lengths" in view for view in shown["runs"].values()):
            shown["text"] = self._cut_text(text)
        return shown

    def _about(self, entry: _Entry, raw: Mapping[str, Any]) -> dict[str, Any]:
        shown: dict[str, Any] = {"task": entry.task, "number": entry.number}
        if context := context_in(raw)[-self.longest_text :]:
            shown["context"] = context
        if choices := choices_in(raw):
            shown["choices"] = [choice.text for choice in choices]
            shown["gold"] = next((index for index, choice in enumerate(choices) if choice.is_gold), None)
        return shown | {"text": text_in(raw)[: self.longest_text + 1], "runs": {}}

    def _view(self, sample: Sample, loss: float, with_alternatives: bool) -> dict[str, Any]:
        view: dict[str, Any] = {} if math.isnan(loss) else {"loss": round(min(loss, _MOST_NLL), 3)}
        if choices := choices_in(sample.raw):
            view["choices"] = [_number(choice.loglikelihood) for choice in choices]
        if sample.tokens:
            view |= self._tokens(sample.tokens, with_alternatives)
        return view

    def _tokens(self, tokens: Tokens, with_alternatives: bool) -> dict[str, Any]:
        texts = self._shown(tokens.texts)
        text, count = "".join(texts), len(texts)
        self.cut += count < len(tokens)
        nll = np.rint(100 * np.clip(np.asarray(tokens.nll[:count], dtype=np.float64), -_MOST_NLL, _MOST_NLL))
        view = {
            "text": text,
            "lengths": list(map(len if text.isascii() else _utf16_length, texts)),
            "nll": np.where(np.isnan(nll), -1, nll).astype(np.int64).tolist(),
        }
        if tokens.alternatives and with_alternatives:
            self.has_alternatives = True
            view["likely"] = self._alternatives(tokens, count)
        self.without_alternatives += bool(tokens.alternatives) and not with_alternatives
        return view

    def _shown(self, texts: Sequence[str]) -> Sequence[str]:
        """The first texts, as far as the budget goes."""
        texts = texts[: self.most_tokens]
        ends = np.cumsum(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)))
        return texts[: int(np.searchsorted(ends, self.longest_text, side="right"))]

    def _alternatives(self, tokens: Tokens, count: int) -> list[list[int]]:
        """For each token a flat list of pairs: the index of a word, and its probability in per mille."""
        sizes = tokens.alternatives.sizes[:count]
        texts, shares = tokens.alternatives.columns(range(len(sizes)))
        flat = [0] * (2 * len(texts))
        flat[::2] = [self.words[text] for text in texts]
        flat[1::2] = np.rint(1000 * np.asarray(shares)).astype(np.int64).tolist()
        ends = itertools.accumulate((2 * size for size in sizes), initial=0)
        return [flat[start:end] for start, end in itertools.pairwise(ends)]

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
    return len(text) if text.isascii() else len(text.encode("utf-16-le", errors="surrogatepass")) // 2
