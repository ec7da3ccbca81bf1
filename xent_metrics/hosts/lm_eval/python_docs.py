"""The documentation that ships with CPython (`pydoc_data.topics`): an offline corpus for tasks, tests and the demo.

A document is a topic of `help()`. Topics that mostly repeat others are dropped. A quarter of the rest, chosen by a hash
of the name, is held out, and passages of held-out topics are removed from the training topics: a model isn't scored on
text that it was trained on. The text differs between Python versions. Its hash is in the tasks' metadata, and scores
with different hashes can't be compared.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping
from pydoc_data.topics import topics as _TOPICS
from typing import TYPE_CHECKING, Any, Literal

from xent_metrics.errors import InvalidInputError

if TYPE_CHECKING:
    from datasets import DatasetDict

__all__ = ["CORPUS_SHA256", "cloze_dataset", "documents", "rolling_dataset"]

#: The hash of all topics, names and texts. A YAML names it as ``!function …python_docs.CORPUS_SHA256``.
CORPUS_SHA256 = hashlib.sha256(json.dumps(sorted(_TOPICS.items())).encode()).hexdigest()

_CHOICES = 4
_CONTEXT_WORDS = 28
_CONTINUATION_WORDS = 8


@functools.cache
def documents(split: Literal["train", "validation"]) -> Mapping[str, str]:
    """The texts of one split by topic, sorted by name.

    >>> sorted(set(documents("train")) & set(documents("validation")))
    []
    """
    distinct = _distinct()
    held_out = {name: text for name, text in distinct.items() if _is_held_out(name)}
    if split == "validation":
        return held_out
    seen = {passage for text in held_out.values() for passage in _passages(text)}
    return {name: _without(text, seen) for name, text in distinct.items() if name not in held_out}


def _is_held_out(name: str) -> bool:
    return hashlib.sha256(f"held out {name}".encode()).digest()[0] < 64


def rolling_dataset(corpus_sha256: str = CORPUS_SHA256, **metadata: Any) -> DatasetDict:
    """The held-out topics, with columns `topic` and `text`. lm-eval also passes the task's other metadata, which is ignored."""
    _check_corpus(corpus_sha256)
    return _dataset([{"topic": topic, "text": text} for topic, text in documents("validation").items()])


def cloze_dataset(corpus_sha256: str = CORPUS_SHA256, cloze_seed: int = 0, **metadata: Any) -> DatasetDict:
    """Questions about the words that come next: a `context`, four `choices` of equally many words, and the index of the `answer`.

    One choice is the true continuation, and three are from passages of other held-out topics. They depend on `cloze_seed`,
    the topic and the number of the passage only.
    """
    _check_corpus(corpus_sha256)
    return _dataset(list(_questions(cloze_seed)))


def _questions(seed: int) -> Iterator[dict[str, Any]]:
    pieces = [(topic, words) for topic, text in documents("validation").items() for words in _prose(text)]
    for number, (topic, words) in enumerate(pieces):
        draw = random.Random(f"{seed} {topic} {number}")
        others = [other for other_topic, other in pieces if other_topic != topic]
        choices = [" ".join(piece[_CONTEXT_WORDS:]) for piece in [words, *draw.sample(others, _CHOICES - 1)]]
        true = choices[0]
        draw.shuffle(choices)
        yield {
            "topic": topic,
            "context": " ".join(words[:_CONTEXT_WORDS]),
            "choices": choices,
            "answer": choices.index(true),
        }


def _prose(text: str) -> Iterator[list[str]]:
    """Runs of as many words as a question needs, from passages other than tables, grammars and interpreter sessions."""
    size = _CONTEXT_WORDS + _CONTINUATION_WORDS
    for passage in re.split(r"\n\s*\n", text):
        if not any(mark in passage for mark in (" | ", "::=", ">>>", "===")):
            words = passage.split()
            yield from (words[start : start + size] for start in range(0, len(words) - size + 1, size))


def _distinct() -> dict[str, str]:
    """The topics without those that mostly repeat shorter ones, such as `compound`, which contains `if`, `for` and `try`."""
    kept, seen = {}, set[str]()
    for name, text in sorted(_TOPICS.items(), key=lambda item: (len(item[1]), item[0])):
        passages = _passages(text)
        repeated = sum(len(passage) for passage in passages if passage in seen)
        if 2 * repeated < sum(map(len, passages)):
            kept[name] = text
        seen.update(passages)
    return dict(sorted(kept.items()))


def _passages(text: str) -> list[str]:
    """The text between blank lines, with line breaks and indentation normalised."""
    return [" ".join(passage.split()) for passage in re.split(r"\n\s*\n", text) if passage.strip()]


def _without(text: str, seen: set[str]) -> str:
    return "\n\n".join(p for p in re.split(r"\n\s*\n", text) if " ".join(p.split()) not in seen)


def _check_corpus(expected: str) -> None:
    if expected != CORPUS_SHA256:
        raise InvalidInputError(
            f"expected the Python documentation with hash {expected}; this Python ships {CORPUS_SHA256}. "
            "Use the Python version of the scores that you compare with, or remove corpus_sha256 from the metadata"
        )


def _dataset(rows: list[dict[str, Any]]) -> DatasetDict:
    from datasets import Dataset, DatasetDict

    return DatasetDict({"validation": Dataset.from_list(rows)})
