r"""Whether the tokens that a server names are ours: servers write tokens as text, each in its own way.

A token may come as its text (``" the"``), without the space before a word, as written in the vocabulary (``"Ġthe"``), as
``"token_id:262"`` or, if it is no whole text, as ``"bytes:\\xe2"``, as U+FFFD, or as nothing. Tokens that are no text by
themselves are not compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import takewhile
from typing import Any

from xent_metrics.hosts.lm_eval.models.tokenizers import encode

__all__ = ["TokenTexts"]

_ID = re.compile(r"token_id:(\d+)")
_SPACES = " ▁Ġ"


class TokenTexts:
    r"""The texts of a tokenizer's tokens, compared with those that a server names.

    Args:
        tokenizer: any object with `encode` and `decode`.

    >>> from xent_metrics.hosts.lm_eval.models.tokenizers import ByteTokenizer
    >>> texts = TokenTexts(ByteTokenizer())
    >>> texts.same("h", 104), texts.same("i", 104), texts.same("bytes:\\xc3", 195)
    (True, False, True)
    >>> texts.ids_of(["h", "i", "bytes:\\xc3"], text="hi\ufffd", after=[256, 111])
    [104, 105]
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = {*getattr(tokenizer, "all_special_ids", ())}
        self._text = cache(self._text_inside)

    def same(self, text: str, token: int) -> bool:
        """Whether a server's text can be that of our token."""
        if named := _ID.fullmatch(text):
            return int(named[1]) == token
        if not self._is_text(token):
            return True
        own = self._text(token)
        return text in (own, self._written(token)) or text.lstrip(_SPACES) == own.lstrip(_SPACES)

    def all_same(self, texts: Sequence[str], tokens: Sequence[int]) -> bool:
        """Whether as many texts as tokens can be those of our tokens."""
        return len(texts) == len(tokens) and all(map(self.same, texts, tokens))

    def ids_of(self, texts: Sequence[str], *, text: str, after: Sequence[int]) -> list[int]:
        """The ids of the tokens that a server generated, up to the first that can't be told from its text.

        Args:
            texts: the tokens as the server names them.
            text: all of them as one text, with its spaces.
            after: the ids of the prompt. Texts are encoded after it, since many tokenizers write a word in two ways.
        """
        prompt = [token for token in after if self._is_text(token)]
        ids = encode(self._tokenizer, self._tokenizer.decode(prompt) + text, add_special_tokens=False)
        if ids[: len(prompt)] != prompt:
            return []
        pairs = zip(texts, ids[len(prompt) :], strict=False)
        told = takewhile(lambda pair: self._is_text(pair[1]) and self.same(*pair), pairs)
        return [token for _, token in told]

    def text_of(self, token: int) -> str:
        """The text of our token, for messages."""
        return self._text(token)

    def _is_text(self, token: int) -> bool:
        own = self._text(token)
        return token not in self._special and bool(own) and "\ufffd" not in own

    def _written(self, token: int) -> str:
        """The token as the vocabulary has it, if the tokenizer tells."""
        convert = getattr(self._tokenizer, "convert_ids_to_tokens", None)
        return str(convert(token)) if convert else self._text(token)

    def _text_inside(self, token: int) -> str:
        """The text of a token inside a text: with its leading space, which many tokenizers drop at the beginning."""
        return str(self._tokenizer.decode([token, token])[len(self._tokenizer.decode([token])) :])
