"""Tokens as servers write them, compared with a tokenizer's own."""

from __future__ import annotations

import pytest

from xent_metrics.hosts.lm_eval.engines.token_texts import TokenTexts


@pytest.fixture(scope="module")
def texts(tokenizer):
    return TokenTexts(tokenizer)


def id_of(tokenizer, text):
    [found] = tokenizer(text, add_special_tokens=False).input_ids
    return found


@pytest.mark.parametrize("written", [" the", "the", "Ġthe", "▁the"])
def test_a_word_may_be_written_in_several_ways(texts, tokenizer, written):
    assert texts.same(written, id_of(tokenizer, " the"))


@pytest.mark.parametrize("written", ["The", "", "\ufffd", " th", "bytes:\\xe2"])
def test_a_word_is_not_another(texts, tokenizer, written):
    assert not texts.same(written, id_of(tokenizer, " the"))


def test_a_token_may_be_written_as_its_id(texts):
    assert texts.same("token_id:300", 300)
    assert not texts.same("token_id:301", 300)


@pytest.mark.parametrize("written", ["\ufffd", "bytes:\\xc3", "", "é"])
def test_half_a_character_is_not_compared(texts, tokenizer, written):
    first, _ = tokenizer("ñ", add_special_tokens=False).input_ids
    assert texts.same(written, first)


@pytest.mark.parametrize("written", ["<|end|>", "", "</s>"])
def test_a_special_token_is_not_compared(texts, written):
    assert texts.same(written, 0)


def test_generated_tokens_get_their_ids_up_to_half_a_character(texts, tokenizer):
    prompt = [0, *tokenizer("The loss of").input_ids]
    ids = tokenizer(" the loss", add_special_tokens=False).input_ids
    names = [texts.text_of(i) for i in ids]
    assert texts.ids_of([*names, "\ufffd", names[0]], text=" the loss\ufffd the", after=prompt) == ids


def test_tokens_of_another_tokenizer_have_no_ids(texts, tokenizer):
    prompt = tokenizer("The loss of").input_ids
    assert texts.ids_of(["Paris", "."], text="Paris.", after=prompt) == []


def test_a_length_that_differs_is_not_the_same(texts):
    assert not texts.all_same([" the"], [])
