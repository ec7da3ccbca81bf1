"""XentHFLM, `--model xent-hf`: lm-eval's `hf` with token scores, at a fraction of its time and memory.

    xent lm-eval run --model xent-hf --model_args pretrained=EleutherAI/pythia-160m --tasks wikitext,arc_easy

Every argument of `hf` works. Requests become windows (windows.py), windows that share a beginning run it once
(packing.py), only what is scored meets `lm_head` (forward.py), and every shortcut is checked (probe.py, runner.py).
Each result is the plain value that lm-eval expects with its tokens' scores behind it (results.py).

Who syncs: nobody here. Under `accelerate launch` each process scores its own requests, and lm-eval gathers them; on CPUs

    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m xent_metrics.cli lm-eval run …

does it, since ``accelerate launch --cpu --num_processes 2`` starts one process unless an MPI hostfile is given.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils.memory import find_executable_batch_size  # type: ignore[import-untyped]
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm  # type: ignore[import-untyped]

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval.extra_scores import asked_for
from xent_metrics.hosts.lm_eval.models.checks import check_backend, check_ids, check_positions, check_prefix
from xent_metrics.hosts.lm_eval.models.forward import Forward
from xent_metrics.hosts.lm_eval.models.logged_tokens import Results
from xent_metrics.hosts.lm_eval.models.model_args import at_least_one, yes_or_no
from xent_metrics.hosts.lm_eval.models.packing import alone
from xent_metrics.hosts.lm_eval.models.runner import Runner
from xent_metrics.hosts.lm_eval.models.tokenizers import bytes_table
from xent_metrics.hosts.lm_eval.models.verify import probe
from xent_metrics.hosts.lm_eval.models.windows import Window, continuation_window, rolling_windows
from xent_metrics.scoring.scores import ExtraScore, TokenScores

__all__ = ["XentHFLM"]

log = logging.getLogger(__name__)

_CPU_TOKENS = 2048  # ids a batch; more are no faster on a CPU, and what is computed of them leaves its caches


@register_model("xent-hf")
class XentHFLM(HFLM):  # type: ignore[misc]  # lm-eval is untyped
    """Any causal model of Hugging Face transformers, scored token by token.

    Args:
        pretrained and the rest: as for `hf`. `batch_size` is how many of a call's longest requests fit a batch; shorter
            ones fill it up to the same number of tokens (on a CPU at most 2,048). `logits_cache=False` shares nothing
            between requests. Log-probabilities are float32 whatever the `softmax_dtype`, or wider if that is.
        stride: long texts by overlapping windows, each of which scores `stride` new tokens behind ``max_length − stride``
            tokens of context; lm-eval's own windows, which hardly overlap, otherwise.
        log_tokens: with `--log_samples`, write every token's text, id, nll and bytes into the samples; no value changes.
        log_alternatives: and as many of the likeliest tokens beside each.

    Raises:
        InvalidInputError: a model that can't be loaded or isn't causal, a `stride` that doesn't fit, a request without tokens
            to score or with more than a window holds; before the model runs on any request.

    >>> from lm_eval.api.instance import Instance
    >>> from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    >>> letters = ["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]                 # a token a byte
    >>> bytes_ = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    >>> bytes_.pre_tokenizer, bytes_.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    >>> small = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=257, **small))
    >>> _ = torch.nn.init.zeros_(model.lm_head.weight)                                    # uniform over 257 ids: ln 257
    >>> lm = XentHFLM(model, tokenizer=PreTrainedTokenizerFast(tokenizer_object=bytes_, eos_token="<eos>"), device="cpu")
    >>> [result] = lm.loglikelihood([Instance("loglikelihood", {}, ("1 + 1 =", " 2"), 0)])
    >>> result.scores.nll, result.scores.num_bytes
    (tensor([5.5491, 5.5491]), tensor([1, 1]))
    """

    gives_token_scores = True  # XentTask asks for it before the model runs

    def __init__(
        self,
        pretrained: Any,
        *args: Any,
        stride: int | None = None,
        log_tokens: bool = False,
        log_alternatives: int = 5,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("max_length") is not None:  # `hf` takes 0 for the model's own
            kwargs["max_length"] = at_least_one("max_length", kwargs["max_length"])
        for name in kwargs:  # `hf` passes on what it doesn't know to the model
            if near := difflib.get_close_matches(name, ("stride", "log_tokens", "log_alternatives"), n=1, cutoff=0.8):
                raise InvalidInputError(f"xent-hf has no argument {name!r}; did you mean {near[0]!r}?")
        try:
            super().__init__(pretrained, *args, **kwargs)
        except (OSError, TypeError) as error:
            raise InvalidInputError(f"{_shown(pretrained)} can't be loaded: {error}") from error
        self._join_processes()
        check_backend(self.model.config, self.backend)
        if self.batch_size == "auto":
            self.max_batch_size: int = at_least_one("max_batch_size", self.max_batch_size)
        else:
            at_least_one("batch_size", self.batch_size)
        self._max_length = at_least_one("max_length", self.max_length)
        check_positions(self.model, self._max_length)
        check_prefix(self.prefix_token_id, self._num_ids)
        self._results = Results(self.tokenizer if yes_or_no("log_tokens", log_tokens) else None, log_alternatives)
        if stride is not None and not (type(stride) is int and 1 <= stride <= self.max_length):
            raise InvalidInputError(f"stride lies between 1 and max_length={self.max_length} tokens; got {stride!r}")
        self.stride = stride
        wider = self.softmax_dtype if self.softmax_dtype == torch.float64 else None
        self.forward = Forward(
            self.model, device=self.device, autocast=self.mixed_precision_dtype, wider=wider,
            bytes_table=partial(bytes_table, self.tokenizer),
        )  # fmt: skip
        self._runner = Runner(self.forward)
        probe(self.forward, self._plain_ids(), self.max_length)

    def _get_backend(self, *args: Any, **kwargs: Any) -> None:
        super()._get_backend(*args, **kwargs)
        check_backend(self.config, self.backend)

    def _join_processes(self) -> None:
        """Take this process' share of the documents on CPUs too, where `hf` would run all of them in every process."""
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None and accelerator.num_processes > 1 and self.world_size == 1:
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes

    def _plain_ids(self) -> list[int]:
        """Ids that are text: no special and no added tokens."""
        tokenizer = self.tokenizer
        added = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", ())}
        size = min(tokenizer.vocab_size, self._num_ids)
        return [i for i in range(size) if i not in added] or list(range(size))

    # Requests.

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(ln p(continuation | context), whether it is the greedy one) of each request, with its tokens' scores."""
        if self.enable_thinking:
            return list(super().loglikelihood(requests, disable_tqdm=disable_tqdm))  # raises
        encoded = [(request.args, *self._encode(*request.args)) for request in requests]
        self.forward.extra_scores = {**asked_for(requests), **self._results.extra_scores}
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        windows = [continuation_window(ctx, cont, max_length=self.max_length) for _, ctx, cont in requests]
        cut = sum(len(ctx) + len(cont) > self.max_length + 1 for _, ctx, cont in requests)
        if cut:
            log.warning(
                "xent-hf: the contexts of %d requests are cut on the left to max_length=%d", cut, self.max_length
            )
        results: dict[int, tuple[float, bool]] = {}
        for place, scores in self._score(windows, "loglikelihood", disable_tqdm, override_bs):
            results[place] = self._results.loglikelihood(scores)
            if requests[place][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[place][0], results[place])
        return [results[place] for place in range(len(windows))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """ln p(text) of each request, every token predicted once, with its tokens' scores; 0 for an empty text."""
        texts = [
            rolling_windows(
                self.tok_encode(request.args[0]), prefix=self._prefix(), max_length=self.max_length, stride=self.stride
            )
            for request in requests
        ]
        self.forward.extra_scores = {**asked_for(requests), **self._results.extra_scores}
        owner = [number for number, text in enumerate(texts) for _ in text]
        parts: list[dict[int, TokenScores]] = [{} for _ in texts]
        results: dict[int, float] = {}

        def finish(number: int) -> None:
            text = [parts[number][place] for place in sorted(parts[number])]
            results[number] = self._results.rolling(
                TokenScores.cat(text) if text else _no_scores(self.forward.extra_scores)
            )
            self.cache_hook.add_partial("loglikelihood_rolling", requests[number].args, results[number])

        windows = [window for text in texts for window in text]
        for place, scores in self._score(windows, "loglikelihood_rolling", disable_tqdm):
            number = owner[place]
            parts[number][place] = scores
            if len(parts[number]) == len(texts[number]):
                finish(number)
        for number, text in enumerate(texts):
            if not text:
                finish(number)
        return [results[number] for number in range(len(texts))]

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take lm-eval's cache, if what it holds is what this model and these options give."""
        names = {"model": self.pretrained, "revision": self.revision, "peft": self.peft, "delta": self.delta}
        made_by = {name: value for name, value in names.items() if isinstance(value, str)}
        made_by |= {
            "class": self.forward.name, "dtype": str(self.forward.dtype), "tokenizer": self._named_tokenizer,
            "prefix_token_id": str(self.prefix_token_id), "add_bos_token": str(self.add_bos_token),
            "max_length": str(self.max_length), "stride": str(self.stride),
        }  # fmt: skip
        self._results.check_cache(cache_hook.dbdict, made_by)
        super().set_cache_hook(cache_hook)

    # Tokens.

    def _encode(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As lm-eval does; an empty context is the prefix token, or the continuation's first if that is the prefix."""
        if context:
            before, ids = self._encode_pair(context, continuation)
            before = before or [self._prefix()]  # a context of spaces, which went to the continuation
        else:
            before, ids = [self._prefix()], self.tok_encode(continuation, add_special_tokens=False)
            if ids[:1] == before:
                ids = ids[1:]
        if not 1 <= len(ids) <= self.max_length:
            behind = "" if context else f" behind the id {before[0]} that begins a text"
            raise InvalidInputError(
                f"the continuation {_short(continuation)} of {_short(context)} has {len(ids)} tokens{behind}; expected 1 to "
                f"max_length={self.max_length}. Look at the task's doc_to_target or doc_to_choice; long texts are "
                "scored by loglikelihood_rolling"
            )
        return before, ids

    def _prefix(self) -> int:
        if self.prefix_token_id is None:
            raise InvalidInputError(
                f"{self._named_tokenizer} has no BOS and no EOS token, and a text without a context needs one before it; "
                "pass prefix_token_id=… in --model_args"
            )
        return int(self.prefix_token_id)

    @property
    def _named_tokenizer(self) -> str:
        return getattr(self.tokenizer, "name_or_path", "") or type(self.tokenizer).__name__

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, *args: Any, **kwargs: Any) -> list[int]:
        """As `hf`; without a prefix token there is none that a text could begin with."""
        if self.prefix_token_id is None and add_special_tokens is None:
            add_special_tokens = True if self.add_bos_token is None else self.add_bos_token
        return list(super().tok_encode(string, add_special_tokens, *args, **kwargs))

    # Running.

    def _score(
        self, windows: Sequence[Window], task: str, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> Iterator[tuple[int, TokenScores]]:
        if not windows:
            return iter(())
        check_ids(windows, self._num_ids, tokenizer_name=self._named_tokenizer)
        bar = partial(
            tqdm, desc=f"Running {task} requests", unit="tok", unit_scale=True,
            disable=True if disable_tqdm or self.rank != 0 else None,  # None: shown on a terminal only
        )  # fmt: skip
        longest = max(len(window.inputs) for window in windows)
        tokens = self._batch_tokens(longest, override_bs)
        return self._runner.run(windows, share=self.logits_cache, max_tokens=tokens, progress=bar)

    @property
    def _num_ids(self) -> int:
        """Ids that the model can read."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def _batch_tokens(self, longest: int, override_bs: int | None) -> int:
        """How many ids a batch has, where the longest request has `longest`."""
        on_cpu = self.device.type == "cpu"
        if self.batch_size == "auto":
            rows = self.max_batch_size if on_cpu else self._largest_batch(longest)
        else:
            rows = override_bs or self.batch_size
        return min(rows * longest, _CPU_TOKENS) if on_cpu else rows * longest

    def _largest_batch(self, longest: int) -> int:
        """The most rows of `longest` ids that fit the memory, `max_batch_size` or fewer."""
        row = alone(0, Window((0,) * longest, (0,) * longest))

        @find_executable_batch_size(starting_batch_size=self.max_batch_size)  # type: ignore[untyped-decorator]
        def largest(batch_size: int) -> int:
            states = self.forward.states([row] * batch_size)
            self.forward.score(states, [0] * len(states))
            return batch_size

        size = int(largest())  # each process its own: one whose requests are all cached isn't here
        log.info("xent-hf: batch_size=auto is %d requests of %d tokens", size, longest)
        return size


def _no_scores(extra_scores: Mapping[str, ExtraScore]) -> TokenScores:
    empty = torch.zeros(0)
    return TokenScores(
        nll=empty,
        counted=empty.bool(),
        confidence=empty,
        correct=empty.bool(),
        target=empty.long(),
        num_bytes=empty.long(),
        extra_scores={name: torch.zeros(0, *score.shape) for name, score in extra_scores.items()},
    )


def _shown(pretrained: Any) -> str:
    return repr(pretrained) if isinstance(pretrained, str) else type(pretrained).__name__


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:25]} … {text[-25:]}")
