"""EngineLM, the mixin that makes a serving engine a model with token scores.

A request becomes windows as in every model of ours (models/scoring_lm.py), a window becomes a prompt, and the engine
reports the log-probabilities of the prompt's tokens (logprobs.py). A subclass says how prompts are read and how tokens are
generated; whatever else lm-eval's own class for the engine does, such as generating texts, it still does.

Who syncs: nobody here. The engine may run on many devices; lm-eval sees one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any, NoReturn

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from tqdm import tqdm  # type: ignore[import-untyped]

from xent_metrics.errors import EngineError, InvalidInputError, MissingExtraError, MissingScoreError
from xent_metrics.hosts.lm_eval.engines.logprobs import TokenLogprobs, token_scores
from xent_metrics.hosts.lm_eval.engines.probe import PROMPTS, Engine, Generated, probe
from xent_metrics.hosts.lm_eval.engines.token_texts import TokenTexts
from xent_metrics.hosts.lm_eval.extra_scores import asked_for
from xent_metrics.hosts.lm_eval.models.checks import check_stride
from xent_metrics.hosts.lm_eval.models.logged_tokens import Results
from xent_metrics.hosts.lm_eval.models.scoring_lm import ScoringLM
from xent_metrics.hosts.lm_eval.models.tokenizers import bytes_table, tokenizer_content
from xent_metrics.hosts.lm_eval.models.windows import Window
from xent_metrics.scoring.scores import TokenScores

__all__ = ["EngineLM", "not_installed"]


class EngineLM(ScoringLM):
    """An lm-eval model that scores by the log-probabilities that a serving engine reports.

    A subclass sets what `ScoringLM` asks for, implements `read` and `generate_greedily`, and calls `start` at the end of its
    constructor.
    """

    gives_extra_scores = False  # the distribution stays in the engine

    def start(self, *, stride: int | None, log_tokens: bool | str) -> None:
        """Check the options, and hold the engine to its own generation (probe.py).

        Raises:
            InvalidInputError: there is no tokenizer, or `stride` doesn't fit.
            EngineError: the engine's log-probabilities can't be scores.
        """
        if self.tokenizer is None:
            raise InvalidInputError(f"{self.model_name} needs a tokenizer, to know which tokens are scored")
        check_stride(stride, self.window_length)
        self.stride = stride
        self.results = Results.of(self.tokenizer, log_tokens=log_tokens, log_alternatives=0)
        self.texts = TokenTexts(self.tokenizer)
        self._num_bytes = bytes_table(self.tokenizer)
        engine = Engine(self.model_name, self.generate_greedily, self._read_one, self.texts.text_of)
        self._greedy = [token for prompts in self._probe_prompts() for token in probe(engine, prompts)]

    def read(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, TokenLogprobs]]:
        """The place of each prompt and what the engine reports about its tokens, as the engine answers."""
        raise NotImplementedError

    def generate_greedily(self, prompt: Sequence[int], num_tokens: int) -> Generated:
        """The likeliest continuation of a prompt, token by token, with its log-probabilities."""
        raise NotImplementedError

    def _read_one(self, prompt: Sequence[int]) -> TokenLogprobs:
        [(_, found)] = self.read([prompt])
        return found

    def _probe_prompts(self) -> list[list[list[int]]]:
        """Prompts without and with the prefix token: a server may be off by one place in those without it alone."""
        begins = [] if self.prefix_token_id is None else [int(self.prefix_token_id)]
        encoded = [list(self.tok_encode(text)) for text in PROMPTS]
        plain = [ids[1:] if ids[:1] == begins else ids for ids in encoded]
        return [plain, [begins + ids for ids in plain]] if begins else [plain]

    def _score(
        self,
        windows: Sequence[Window],
        task: str,
        disable_tqdm: bool = False,
        override_bs: int | None = None,
        known: Set[int] = frozenset(),
    ) -> Iterator[tuple[int, TokenScores]]:
        """Longest prompts first, as lm-eval sends them, and prompts that begin alike one after the other."""
        prompts = [(*window.inputs, window.targets[-1]) for window in windows]
        order = sorted({*range(len(prompts))} - known, key=lambda place: (-len(prompts[place]), prompts[place]))
        bar = tqdm(
            total=len(order),
            desc=f"Running {task} requests",
            disable=True if disable_tqdm or self.rank != 0 else None,
        )
        with bar:
            for number, found in self.read([prompts[place] for place in order]):
                place = order[number]
                yield place, token_scores(found, len(windows[place].targets), self._num_bytes, engine=self.model_name)
                bar.update()

    def _no_scores(self) -> TokenScores:
        return TokenScores.empty(("confidence", "correct", "target", "num_bytes", "invalid"))

    @contextmanager
    def _extra_scores_for(self, requests: Sequence[Instance]) -> Iterator[None]:
        """Raise `MissingScoreError` if a request asks for extra scores. XentTask raises earlier where it can."""
        if wanted := sorted(asked_for(requests)):
            raise MissingScoreError(
                f"{self.model_name} can't give {', '.join(wanted)} of each token, which metrics of these tasks need: an engine "
                "reports only the log-probability of each token and the largest one. Leave these metrics out, or use "
                "`--model xent-hf`"
            )
        yield

    def made_by(self) -> dict[str, str]:
        return {
            "class": type(self).__name__, "tokenizer": tokenizer_content(self.tokenizer),
            "prefix_token_id": str(self.prefix_token_id), "add_bos_token": str(self.add_bos_token),
            "max_length": str(self.max_length), "stride": str(self.stride), "generates": str(self._greedy),
        }  # fmt: skip

    def _refuse(self, what: str) -> NoReturn:
        raise EngineError(f"{self.model_name} {what}")


def not_installed(name: str, command: str, error: ImportError) -> type[TemplateLM]:
    """A base class for the model of an engine that isn't installed: the model can be imported, but not made."""

    class NotInstalled(TemplateLM):  # type: ignore[misc]  # lm-eval is untyped
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            raise MissingExtraError(f"{name} needs its engine: {command} ({error})") from error

    return NotInstalled
