"""ScoringLM, the base of our lm-eval models: requests → windows → token scores → results.

A text becomes windows of ids (windows.py), the runner scores them (runner.py), and each request gets the plain value that
lm-eval expects, which carries its token scores (results.py). A model class adds how it loads and what it runs.

Who syncs: nobody here. Each process scores its own requests, and lm-eval gathers the results.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval.extra_scores import asked_for, asks_for_scores
from xent_metrics.hosts.lm_eval.models.checks import check_ids
from xent_metrics.hosts.lm_eval.models.forward import Forward
from xent_metrics.hosts.lm_eval.models.logged_tokens import Results
from xent_metrics.hosts.lm_eval.models.progress import progress_bar
from xent_metrics.hosts.lm_eval.models.results import ScoredLoglikelihood, ScoredText
from xent_metrics.hosts.lm_eval.models.runner import Runner
from xent_metrics.hosts.lm_eval.models.tokenizers import tokenizer_label
from xent_metrics.hosts.lm_eval.models.windows import Window, continuation_window, rolling_windows
from xent_metrics.hosts.lm_eval.upstream import encode_pair, rolling_text
from xent_metrics.scoring.scores import TokenScores

__all__ = ["ScoringLM"]

log = logging.getLogger(__name__)

#: A context and its continuation as lm-eval knows them, or None, and the ids of both.
Encoded = tuple[Any, list[int], list[int]]


class ScoringLM(TemplateLM):  # type: ignore[misc]  # lm-eval is untyped
    """An lm-eval model that scores token by token.

    A subclass sets `tokenizer`, `max_length`, `batch_size` and `results`, and says what runs its windows (`_runner`) and what
    its results depend on (`made_by`).

    Attributes:
        model_name: the name of ``--model``, for messages.
        stride: how many ids each window of a long text predicts; as many as fit by default.
        logits_cache: whether windows may share their prefixes.
    """

    gives_token_scores = True  # XentTask asks for these two before the model runs
    gives_extra_scores = True
    model_name = "a model with token scores"
    stride: int | None = None
    logits_cache = False
    results: Results

    @cached_property
    def _runner(self) -> Runner:
        raise NotImplementedError

    @property
    def forward(self) -> Forward:
        """What runs rows of ids."""
        return self._runner.forward

    def made_by(self) -> dict[str, str]:
        """What a result depends on, by name: the model, its weights and its options."""
        raise NotImplementedError

    def batching(self) -> dict[str, str]:
        """What the last bits of a result may depend on besides, and how results are logged."""
        logged = "parquet" if self.results.in_parquet else self.results.tokenizer is not None
        return {
            "batch_size": str(self.batch_size), "logits_cache": str(self.logits_cache),
            "device": _device_name(getattr(self, "device", None)),
            "log_tokens": str(logged), "log_alternatives": str(self.results.num_alternatives),
        }  # fmt: skip

    @property
    def _num_ids(self) -> int:
        """The number of ids that the model knows."""
        raise NotImplementedError

    @property
    def window_length(self) -> int:
        """The most ids that a window reads."""
        return int(self.max_length)

    def _batch_tokens(self, longest: int, override_bs: int | None) -> int:
        """The most ids of a batch, if the longest window has `longest`."""
        return int((override_bs or self.batch_size) * (self.forward.row_length or longest))

    # What lm-eval asks for.

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(ln p(continuation | context), whether greedy decoding gives it) of each request, with token scores."""
        encoded = [(request.args, *self._encode(*request.args)) for request in requests]
        with self._extra_scores_for(requests):
            return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Encoded],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
        known: Mapping[int, tuple[float, bool]] | None = None,
    ) -> list[tuple[float, bool]]:
        """`TemplateLM._loglikelihood_tokens`, abstract in lm-eval 0.4.13: `loglikelihood` of ids instead of texts.

        `known` are results by place; without it, a journal is asked for those of requests with texts.
        """
        windows = [continuation_window(context, ids, max_length=self.window_length) for _, context, ids in requests]
        cut = sum(len(context) + len(ids) > self.window_length + 1 for _, context, ids in requests)
        if cut:
            log.warning(
                "%s: the contexts of %d requests are cut on the left to max_length=%d",
                self.model_name,
                cut,
                self.window_length,
            )
        results = dict(self._known("loglikelihood", [given for given, _, _ in requests]) if known is None else known)
        for place, scores in self._score(windows, "loglikelihood", disable_tqdm, override_bs, known={*results}):
            results[place] = self.results.loglikelihood(scores)
            if requests[place][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[place][0], results[place])
        return [results[place] for place in range(len(windows))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The loglikelihood ln p(text) of each request, with token scores; every token is predicted once."""
        texts = [self._rolling_windows(rolling_text(request.args)) for request in requests]
        # Numbers, or pairs where lm-eval expects pairs.
        results: dict[int, Any] = self._known("loglikelihood_rolling", [request.args for request in requests])
        with self._extra_scores_for(requests):
            for number, scores in self._score_texts(texts, disable_tqdm, known={*results}):
                results[number] = self.results.rolling(scores)
                self.cache_hook.add_partial("loglikelihood_rolling", requests[number].args, results[number])
        return [results[number] for number in range(len(texts))]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The texts that lm-eval's own class for the model generates, with token scores where a request asks for them.

        A text is then scored as a continuation of its context is, in a pass after the generation.
        """
        asked = [place for place, request in enumerate(requests) if asks_for_scores(request)]
        scoring = self._extra_scores_for([requests[place] for place in asked]) if asked else nullcontext()
        with scoring:  # an engine refuses them before it generates
            texts = self._known("generate_until", [request.args for request in requests])
            rest = [place for place in range(len(requests)) if place not in texts]
            if rest:
                made = super().generate_until([requests[place] for place in rest], disable_tqdm=disable_tqdm)
                texts |= zip(rest, made, strict=True)
            pairs = [(requests[place].args[0], texts[place]) for place in asked]
            scored = self._loglikelihoods_of_generated(pairs, disable_tqdm) if pairs else []
            for place, found in zip(asked, scored, strict=True):
                texts[place] = ScoredText(texts[place], found)
                self.cache_hook.add_partial("generate_until", requests[place].args, texts[place])
        return [texts[place] for place in range(len(requests))]

    def _loglikelihoods_of_generated(
        self, pairs: Sequence[tuple[str, str]], disable_tqdm: bool
    ) -> list[ScoredLoglikelihood]:
        """The loglikelihood of each text after its context; that of a text without tokens is 0."""
        found = [self.results.loglikelihood(self._no_scores())] * len(pairs)
        places = [place for place, (_, text) in enumerate(pairs) if text]
        texts = ((i, pairs[place][1]) for i, place in enumerate(places))
        known = {i: text.loglikelihood for i, text in texts if isinstance(text, ScoredText)}
        encoded: list[Encoded] = [(None, *self._encode(*pairs[place])) for place in places]
        scored = self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm, known=known)
        for place, result in zip(places, scored, strict=True):
            assert isinstance(result, ScoredLoglikelihood)
            found[place] = result
        return found

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Use lm-eval's cache, if its results come from this model with these options."""
        self.results.check_cache(cache_hook.dbdict, self.made_by())
        super().set_cache_hook(cache_hook)

    def _known(self, kind: str, arguments: Sequence[Any]) -> dict[int, Any]:
        """The results that a journal has of requests (journal.py), by their places."""
        find = getattr(self.cache_hook, "find", None)
        found = {} if find is None else {place: find(kind, each) for place, each in enumerate(arguments) if each}
        return {place: result for place, result in found.items() if result is not None}

    # Ids.

    def _encode(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The ids of a request, as in lm-eval: an empty context is the prefix token, which isn't repeated after it."""
        if context:
            before, ids = encode_pair(self, context, continuation)
            before = before or [self._prefix_token()]  # a context of spaces, which went to the continuation
        else:
            before, ids = [self._prefix_token()], self.tok_encode(continuation, add_special_tokens=False)
            if ids[:1] == before:
                ids = ids[1:]
        if not 1 <= len(ids) <= self.window_length:
            after = "" if context else f" after the id {before[0]} that begins a text"
            raise InvalidInputError(
                f"the continuation {_short(continuation)} of {_short(context)} has {len(ids)} tokens{after}; expected 1 to "
                f"max_length={self.window_length}. Look at the task's doc_to_target or doc_to_choice; long texts are "
                "scored by loglikelihood_rolling"
            )
        return before, ids

    def _rolling_windows(self, text: str) -> list[Window]:
        ids, prefix_token = self.tok_encode(text), self._prefix_token()
        return rolling_windows(ids, prefix_token=prefix_token, max_length=self.window_length, stride=self.stride)

    def _prefix_token(self) -> int:
        """The id that begins a text; raises `InvalidInputError` if there is none."""
        if self.prefix_token_id is None:
            raise InvalidInputError(
                f"{tokenizer_label(self.tokenizer)} has no BOS and no EOS token, and a text without a context is predicted "
                "from one; pass prefix_token_id=… in --model_args"
            )
        return int(self.prefix_token_id)

    # Scores.

    def score(self, windows: Sequence[Window], *, disable_tqdm: bool = True) -> list[TokenScores]:
        """The scores of each window's targets, on the CPU, in the order of `windows`."""
        found = dict(self._score(windows, "score", disable_tqdm))
        return [found[place] for place in range(len(windows))]

    def _score(
        self,
        windows: Sequence[Window],
        task: str,
        disable_tqdm: bool = False,
        override_bs: int | None = None,
        known: Set[int] = frozenset(),
    ) -> Iterator[tuple[int, TokenScores]]:
        """The place and the scores of each window, as they are computed, except those at the places in `known`."""
        if not windows:
            return iter(())
        check_ids(windows, self._num_ids, tokenizer=self.tokenizer)
        bar = partial(
            progress_bar, desc=f"Running {task} requests", unit="tok", unit_scale=True,
            hidden=disable_tqdm or self.rank != 0,
        )  # fmt: skip
        longest = max(len(window.inputs) for window in windows)
        tokens = self._batch_tokens(longest, override_bs)
        return self._runner.run(windows, share=self.logits_cache, max_tokens=tokens, progress=bar, known=known)

    def _score_texts(
        self, texts: Sequence[Sequence[Window]], disable_tqdm: bool, known: Set[int]
    ) -> Iterator[tuple[int, TokenScores]]:
        """The number and the scores of each text, once all its windows are scored, except those with numbers in `known`."""
        yield from (
            (number, self._no_scores()) for number, text in enumerate(texts) if not text and number not in known
        )
        owner = [number for number, text in enumerate(texts) for _ in text]
        parts: dict[int, dict[int, TokenScores]] = {}
        windows = [window for text in texts for window in text]
        places = {place for place, number in enumerate(owner) if number in known}
        for place, scores in self._score(windows, "loglikelihood_rolling", disable_tqdm, known=places):
            number = owner[place]
            own = parts.setdefault(number, {})
            own[place] = scores
            if len(own) == len(texts[number]):
                yield number, TokenScores.cat([own[place] for place in sorted(own)])
                del parts[number]

    def _no_scores(self) -> TokenScores:
        """The scores of a text without tokens."""
        fields = ("confidence", "correct", "target", "num_bytes")
        return TokenScores.empty(fields, extra_scores=self.forward.extra_scores)

    @contextmanager
    def _extra_scores_for(self, requests: Sequence[Instance]) -> Iterator[None]:
        """Within it, the extra scores that the requests and the results ask for are computed."""
        self.forward.extra_scores = {**asked_for(requests), **self.results.extra_scores}
        try:
            yield
        finally:
            self.forward.extra_scores = {}


def _device_name(device: Any) -> str:
    """What kind of device it is, whichever of several."""
    if isinstance(device, torch.device) and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(getattr(device, "type", device))


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:25]} … {text[-25:]}")
