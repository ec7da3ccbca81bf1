"""Bits per word: words counted as `str.split` counts them, however the text is cut into tokens."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xent_metrics_surprisal import WordSurprisal, with_words, word_surprisals

from xent_metrics import from_loglikelihoods, score_tokens
from xent_metrics.errors import InvalidInputError, MissingScoreError
from xent_metrics.metrics import WordPerplexity
from xent_metrics.testing import check_metric


def scored(count, length):
    """Scores of the ids 0, 1, 2 … in rows, each of log2(length) bits."""
    ids = torch.arange(count * length).reshape(count, length)
    return score_tokens(torch.zeros(count, length, count * length), ids)


def test_it_keeps_the_contract():
    check_metric(WordSurprisal())


@settings(max_examples=25)
@given(st.lists(st.text(alphabet="ab \n\té", max_size=4), min_size=1, max_size=12), st.booleans())
def test_words_are_counted_as_in_the_whole_text(pieces, as_bytes):
    texts = [piece.encode() for piece in pieces] if as_bytes else pieces
    scores = with_words(scored(1, len(pieces)), texts)
    assert int(scores.num_words.sum()) == len("".join(pieces).split())
    found = word_surprisals(scores, texts)[0]
    assert sum(bits for _, bits in found) == pytest.approx(len(pieces) * math.log2(len(pieces)), abs=1e-4)


@settings(max_examples=25)
@given(st.lists(st.from_regex(r"[ \n]{0,2}[abé]{0,3}", fullmatch=True), min_size=1, max_size=12))
def test_words_are_those_of_the_text_where_tokens_begin_with_the_space(pieces):
    found = word_surprisals(scored(1, len(pieces)), pieces)[0]
    assert [word for word, _ in found if word] == "".join(pieces).split()


def test_each_row_is_a_text_of_its_own():
    texts = ["one", " two", "th", "ree", "four", "!", " ", "five"]
    scores = with_words(scored(2, 4), texts)
    assert scores.num_words.tolist() == [[1, 1, 0, 0], [1, 0, 0, 1]]
    found = word_surprisals(scored(2, 4), texts)
    assert [[(word, round(bits, 4)) for word, bits in each] for each in found] == [
        [("one", 3), ("twothree", 9)],
        [("four!", 9), ("five", 3)],
    ]


def test_a_character_that_two_tokens_share():
    texts = [b"na", b"\xc3", b"\xafve", b" x"]
    assert [word for word, _ in word_surprisals(scored(1, 4), texts)[0]] == ["naïve", "x"]


def test_a_row_that_does_not_count_has_no_words_and_ends_the_last():
    ids = torch.tensor([[0, -100, 1, 2]])
    scores = with_words(score_tokens(torch.zeros(1, 4, 3), ids), ["a", "b", "c"])
    assert scores.num_words.tolist() == [[1, 0, 1, 0]]


def test_it_takes_the_nats_of_every_token_where_word_perplexity_does_not():
    scores = with_words(scored(1, 4), ["un", "like", "ly", " it"])
    surprisal, perplexity = WordSurprisal(), WordPerplexity()
    for metric in (surprisal, perplexity):
        metric.update(scores)
    assert float(surprisal.compute()) == pytest.approx(4 * 2 / 2)
    assert float(perplexity.compute().log2()) == pytest.approx(2 * 2 / 2)
    document = from_loglikelihoods([-8 * math.log(2)], num_words=[2])
    for metric in (surprisal, perplexity):
        metric.reset()
        metric.update(document)
    assert float(surprisal.compute()) == pytest.approx(float(perplexity.compute().log2()))


def test_what_is_missing_is_named():
    with pytest.raises(MissingScoreError, match="word_surprisal needs `num_words`"):
        WordSurprisal().update(torch.zeros(1, 3), torch.tensor([0]))
    with pytest.raises(InvalidInputError, match="expected a text for each of 4 ids; got 3"):
        with_words(scored(1, 4), ["a", "b", "c"])
    with pytest.raises(InvalidInputError, match="needs scores of integer targets"):
        with_words(from_loglikelihoods([-1.0], row_kind="token"), ["a"])
