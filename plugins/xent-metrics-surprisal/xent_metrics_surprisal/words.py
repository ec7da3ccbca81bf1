"""Surprisal of words, in bits: a word's is the sum of its tokens'.

Words are what white space separates. lm-eval counts them in the text of a document. Elsewhere `with_words` counts, from the
texts of the tokens, how many words begin in each.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from xent_metrics import NATS, RatioMetric, SharedSum, TokenScores
from xent_metrics.errors import InvalidInputError
from xent_metrics.metrics.bits_per_byte import Length

__all__ = ["WordSurprisal", "with_words", "word_surprisals"]


class WordSurprisal(RatioMetric):
    """Word surprisal = −Σ log2 p(target) / Σ words, in bits per word: the mean over words of the bits of their tokens.

    Needs scores with `num_words`: lm-eval tasks count them in the text, elsewhere use `with_words`. Unlike
    `word_perplexity`, which leaves out rows without words, it takes the nats of every token: a word's later tokens begin
    no word. Reference: Hale (2001), A Probabilistic Earley Parser as a Psycholinguistic Model.

    >>> from xent_metrics import score_tokens
    >>> scores = score_tokens(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))  # 2 bits for each token
    >>> metric = WordSurprisal()
    >>> metric.update(with_words(scores, ["un", "likely", " events", "!"]))  # "unlikely events"
    >>> metric.compute()
    tensor(3.0000, dtype=torch.float64)
    """

    name = "word_surprisal"
    formula = "−Σ log2 p(target) / words"
    latex = r"-\frac{1}{W} \sum_t \log_2 p_t(y_t)"
    use_when = "To compare with reading times and other measures of people, and models whose tokenizers differ."
    hides = "What a word is: here, what white space parts. Languages without spaces have few."
    value_unit = "bits per word"
    value_range = (0.0, math.inf)
    reference = "Hale (2001), A Probabilistic Earley Parser as a Psycholinguistic Model"
    higher_is_better = False
    requires = frozenset({"nll", "num_words"})
    row_kinds = frozenset({"token", "document"})

    def sum_names(self) -> tuple[SharedSum, SharedSum]:
        return NATS, Length("num_words")

    def per_token(self, scores: TokenScores) -> Tensor:
        return scores.nll

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return super().value(sums) / math.log(2)


def with_words(scores: TokenScores, token_texts: Sequence[str | bytes]) -> TokenScores:
    """The scores with `num_words`: how many words begin in each token.

    Args:
        scores: ``(…, T)`` of targets that follow each other, with `target`.
        token_texts: the text of each id, ``V`` of them; bytes for tokenizers whose tokens may split a character, in which
            only ASCII white space separates words. The text of a special token is "".

    A row that doesn't count has an unknown text: the token after it begins a word. Waits for the device.

    Raises:
        InvalidInputError: the scores have no targets, or there aren't V texts.
    """
    if scores.target is None:
        raise InvalidInputError("with_words needs scores of integer targets; got scores without targets")
    if scores.vocab_size is not None and len(token_texts) != scores.vocab_size:
        raise InvalidInputError(f"expected a text for each of {scores.vocab_size} ids; got {len(token_texts)}")
    inside, first, space = torch.tensor([_places(text) for text in token_texts]).T.to(scores.device)[:, scores.target]
    words, after_space = [], torch.ones_like(space[..., 0])
    for place in range(space.shape[-1]):
        words.append(inside[..., place] + first[..., place] * after_space)
        ends = space[..., place]
        after_space = torch.where(scores.counted[..., place], torch.where(ends < 0, after_space, ends), 1)
    return dataclasses.replace(scores, num_words=torch.stack(words, dim=-1) * scores.counted)


def _places(text: str | bytes) -> tuple[int, int, int]:
    """Words that begin after white space in the text; 1 if it begins with a word's character; 1 if it ends in white space.

    The last is −1 for an empty text.
    """
    spaces = [character.isspace() for character in (text if isinstance(text, str) else _characters(text))]
    if not spaces:
        return 0, 0, -1
    inside = sum(before and not here for before, here in pairwise(spaces))
    return inside, int(not spaces[0]), int(spaces[-1])


def _characters(text: bytes) -> list[bytes]:
    return [text[place : place + 1] for place in range(len(text))]


def word_surprisals(scores: TokenScores, token_texts: Sequence[str | bytes]) -> list[list[tuple[str, float]]]:
    """Each sequence's words with their surprisal in bits, in order; the bits of all words are those of all tokens.

    A token in which no word begins belongs to the word before, or to the first. One in which words begin is listed from
    there on, even if it has the end of the word before, or several words.

    Args:
        scores: ``(B, T)``.
        token_texts: as for `with_words`.

    >>> from xent_metrics import score_tokens
    >>> scores = score_tokens(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))
    >>> [[(word, round(bits, 4)) for word, bits in each] for each in word_surprisals(scores, ["un", "likely", " it", "!"])]
    [[('unlikely', 4.0), ('it', 2.0)]]
    """
    scores = with_words(scores, token_texts)
    assert scores.target is not None
    assert scores.num_words is not None
    found = []
    for ids, nll, begins, counted in zip(
        scores.target.tolist(), scores.nll.tolist(), scores.num_words.tolist(), scores.counted.tolist(), strict=True
    ):
        words: list[tuple[str | bytes, float]] = []
        for token, nats, begin, is_counted in zip(ids, nll, begins, counted, strict=True):
            if not is_counted:
                continue
            if begin or not words:
                words.append((token_texts[token], nats))
            else:
                words[-1] = (words[-1][0] + token_texts[token], words[-1][1] + nats)  # type: ignore[operator]
        found.append([(_as_text(word).strip(), nats / math.log(2)) for word, nats in words])
    return found


def _as_text(word: str | bytes) -> str:
    return word if isinstance(word, str) else word.decode(errors="replace")
