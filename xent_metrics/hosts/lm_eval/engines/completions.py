"""XentCompletions, `--model xent-completions`: any OpenAI-compatible `/v1/completions` server, with token scores.

    xent lm-eval run --model xent-completions --tasks wikitext \
        --model_args base_url=http://localhost:8000/v1/completions,model=EleutherAI/pythia-160m,num_concurrent=8

The server must echo prompts with their log-probabilities (``echo`` and ``logprobs``). Requests are sent and retried as by
lm-eval's `local-completions`. If one fails for good, those under way are still read, and kept with `--use_cache`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

import requests
from lm_eval.api.registry import register_model
from lm_eval.models.api_models import TemplateAPI
from lm_eval.models.openai_completions import LocalCompletionsAPI

from xent_metrics.errors import EngineError, InvalidInputError, MissingExtraError
from xent_metrics.hosts.lm_eval.engines.answers import aligned, choices_of, first_listed, listed
from xent_metrics.hosts.lm_eval.engines.engine_lm import EngineLM
from xent_metrics.hosts.lm_eval.engines.logprobs import TokenLogprobs
from xent_metrics.hosts.lm_eval.engines.probe import Generated
from xent_metrics.hosts.lm_eval.models.tokenizers import tokenizer_label
from xent_metrics.hosts.lm_eval.upstream import batch_size, num_concurrent

__all__ = ["XentCompletions"]

_FROM_THE_COMMAND = ("max_batch_size", "device")  # lm-eval's command always passes them; a server has no use for them


@register_model("xent-completions")
class XentCompletions(EngineLM, LocalCompletionsAPI):  # type: ignore[misc]  # lm-eval is untyped
    """A model behind an OpenAI-compatible server, scored token by token.

    Args:
        base_url: the address of its completions, such as ``http://localhost:8000/v1/completions``.
        **kwargs: as for `local-completions`: `model`, `tokenizer`, `num_concurrent`, `max_retries`, `batch_size`, `timeout` …
            `max_length` is the most tokens of a prompt with the one token that is generated after it.
        stride: as for `xent-hf`.
        log_tokens: as for `xent-hf`, without alternatives.

    Raises:
        InvalidInputError: an unknown argument, or a tokenizer that can't be loaded.
        EngineError: the server doesn't answer, doesn't echo log-probabilities, has another tokenizer, or doesn't read tokens
            as it generates them; always before any request of a task.
    """

    model_name = "xent-completions"
    _first: int | None = None  # the place of the first token of a prompt that the server lists

    def __init__(
        self, base_url: str | None = None, *, stride: int | None = None, log_tokens: bool | str = False, **kwargs: Any
    ) -> None:
        _check_names(kwargs)
        if not base_url:
            raise InvalidInputError("xent-completions needs base_url=http://host:port/v1/completions")
        try:
            super().__init__(base_url=base_url, **kwargs)
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"xent-completions needs lm-eval's extra api: pip install 'lm_eval[api]' ({error})"
            ) from error
        except (OSError, ValueError) as error:
            raise InvalidInputError(
                f"the tokenizer of xent-completions, {kwargs.get('tokenizer') or kwargs.get('model')}, can't be loaded: {error}. "
                "Pass tokenizer=… as a path or name that transformers knows"
            ) from error
        self.start(stride=stride, log_tokens=log_tokens)

    @property
    def window_length(self) -> int:
        """The most ids that a window reads: its last target is sent with it. `local-completions` takes 1 off `max_length`."""
        return int(self.max_length) - 1

    def read(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, TokenLogprobs]]:
        """Send prompts, `num_concurrent` requests of `batch_size` at a time."""
        pool = ThreadPoolExecutor(max(1, num_concurrent(self)))
        size = batch_size(self)
        asked = {
            pool.submit(self._read_batch, prompts[start : start + size]): start
            for start in range(0, len(prompts), size)
        }
        failed: BaseException | None = None
        try:
            for done in as_completed(asked):
                if error := _error_of(done):
                    failed = failed or error
                    for other in asked:
                        other.cancel()
                elif not done.cancelled():
                    yield from enumerate(done.result(), asked[done])
        finally:
            pool.shutdown(cancel_futures=True)
        if failed is not None:
            raise failed

    def generate_greedily(self, prompt: Sequence[int], num_tokens: int) -> Generated:
        """One request for `num_tokens` tokens at temperature 0, with log-probabilities."""
        options = {"max_tokens": num_tokens, "logprobs": 1, "until": []}
        [choice] = self._ask([prompt], generate=True, gen_kwargs=options)
        found = self._checked(listed, choice)
        tokens = self.texts.ids_of(found.texts, text=str(choice.get("text") or ""), after=prompt)
        size = len(tokens)
        reported = TokenLogprobs(tuple(tokens), tuple(found.own[:size]), tuple(found.largest[:size]))
        return Generated(reported, found.own, found.texts)

    def _read_batch(self, prompts: Sequence[Sequence[int]]) -> list[TokenLogprobs]:
        choices = self._ask(prompts, generate=False)
        return [self._checked(self._aligned, prompt, choice) for prompt, choice in zip(prompts, choices, strict=True)]

    def _aligned(self, prompt: Sequence[int], choice: Mapping[str, Any]) -> TokenLogprobs:
        found = listed(choice)
        if self._first is None:
            self._first = first_listed(prompt, found, self.texts)
        return aligned(prompt, found, self.texts, first=self._first)

    def _ask(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[Mapping[str, Any]]:
        """The choices of an answer; `TemplateAPI.model_call` sends prompts; they are retried as lm-eval does."""
        from tenacity import retry, stop_after_attempt, wait_exponential

        tries = retry(
            stop=stop_after_attempt(self.max_retries),
            wait=wait_exponential(multiplier=0.5, min=1, max=10),
            reraise=True,
        )
        try:
            answer = tries(self.model_call)(messages=[list(prompt) for prompt in prompts], **options)
        except requests.RequestException as error:
            raise EngineError(
                f"xent-completions: no answer from {self.base_url} in {self.max_retries} tries: {error}. Is the server "
                "running, and is this the address of its completions (…/v1/completions)?"
            ) from error
        choices: list[Mapping[str, Any]] = self._checked(choices_of, answer, len(prompts))
        return choices

    def _checked(self, read: Any, *arguments: Any) -> Any:
        """What `read` makes of an answer; its errors name the server."""
        try:
            return read(*arguments)
        except EngineError as error:
            raise EngineError(f"xent-completions, {self.base_url}: {error}") from error

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as one text, by the tokenizer's own template: `/v1/completions` takes texts, not chats."""
        if not getattr(self.tokenizer, "apply_chat_template", None):
            raise InvalidInputError(f"{self.tokenizer_name} has no chat template; leave --apply_chat_template out")
        text = self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )  # fmt: skip
        return str(text)

    @property
    def tokenizer_name(self) -> str:
        return tokenizer_label(self.tokenizer).replace("/", "__")

    def made_by(self) -> dict[str, str]:
        return super().made_by() | {"model": str(self.model)}


def _error_of(done: Future[Any]) -> BaseException | None:
    return None if done.cancelled() else done.exception()


def _check_names(names: Mapping[str, Any]) -> None:
    """Refuse unknown arguments, which `local-completions` ignores."""
    classes = (XentCompletions, LocalCompletionsAPI, TemplateAPI)
    parameters = [parameter for each in classes for parameter in inspect.signature(each.__init__).parameters.values()]
    known = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {"self"} | {*_FROM_THE_COMMAND}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InvalidInputError(f"xent-completions takes no {name!r}.{hint}")
