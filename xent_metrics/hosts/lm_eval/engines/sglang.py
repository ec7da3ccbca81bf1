"""XentSGLang, `--model xent-sglang`: lm-eval's `sglang` with token scores.

    xent lm-eval run --model xent-sglang --model_args pretrained=EleutherAI/pythia-160m --tasks wikitext

SGLang reports ``meta_info["input_token_logprobs"]``, one ``(logprob, id, text)`` for each token of a prompt, and
``meta_info["input_top_logprobs"]``, a list of such triples for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.sglang_causallms import SGLangLM

from xent_metrics.errors import MissingExtraError
from xent_metrics.hosts.lm_eval.engines.engine_lm import EngineLM
from xent_metrics.hosts.lm_eval.engines.logprobs import TokenLogprobs
from xent_metrics.hosts.lm_eval.engines.probe import Generated
from xent_metrics.hosts.lm_eval.models.tokenizers import tokenizer_label
from xent_metrics.hosts.lm_eval.upstream import engine_outputs

__all__ = ["XentSGLang"]


@register_model("xent-sglang")
class XentSGLang(EngineLM, SGLangLM):  # type: ignore[misc]  # lm-eval is untyped
    """A model in SGLang, scored token by token.

    Args:
        pretrained, **kwargs: as for `sglang`.
        stride: as for `xent-hf`.
        log_tokens: as for `xent-hf`, without alternatives.

    Raises:
        MissingExtraError: SGLang isn't installed.
        EngineError: SGLang doesn't read tokens as it generates them.
    """

    model_name = "xent-sglang"

    def __init__(
        self, pretrained: str, *, stride: int | None = None, log_tokens: bool | str = False, **kwargs: Any
    ) -> None:
        try:
            super().__init__(pretrained, **kwargs)
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"xent-sglang needs its engine: pip install sglang ({error})") from error
        self.start(stride=stride, log_tokens=log_tokens)

    @property
    def window_length(self) -> int:
        """The most ids that a window reads. SGLang refuses a prompt that, with one new token, fills its context."""
        return int(self.max_length) - 3

    @property
    def tokenizer_name(self) -> str:
        return tokenizer_label(self.tokenizer).replace("/", "__")

    def read(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, TokenLogprobs]]:
        """Let SGLang read the prompts in batches; lm-eval passes the options on to its engine."""
        size = len(prompts) if self.batch_size == "auto" else int(self.batch_size)
        for start in range(0, len(prompts), size):
            batch = [list(prompt) for prompt in prompts[start : start + size]]
            outputs = engine_outputs(
                self, batch, generate=False, return_logprob=True, top_logprobs_num=1, logprob_start_len=0
            )
            for place, (prompt, output) in enumerate(zip(batch, outputs, strict=True), start):
                found = self._reported(output["meta_info"], "input")
                if found.tokens != tuple(prompt):
                    self._refuse(
                        f"asked SGLang about {len(prompt)} tokens and got {len(found)}; expected the same ids, "
                        f"{prompt[:8]} …; got {list(found.tokens[:8])} …"
                    )
                yield place, found

    def generate_greedily(self, prompt: Sequence[int], num_tokens: int) -> Generated:
        """One call for `num_tokens` tokens at temperature 0, with log-probabilities."""
        [output] = engine_outputs(
            self, [prompt], generate=True, sampling_params=[{"temperature": 0, "max_new_tokens": num_tokens}],
            return_logprob=True, top_logprobs_num=1,
        )  # fmt: skip
        reported = self._reported(output["meta_info"], "output")
        return Generated(reported, reported.own, [self.texts.text_of(token) for token in reported.tokens])

    def _reported(self, meta_info: Mapping[str, Any], side: str) -> TokenLogprobs:
        own, top = meta_info.get(f"{side}_token_logprobs"), meta_info.get(f"{side}_top_logprobs")
        if not own or not top or len(own) != len(top):
            self._refuse(
                f"expected {side}_token_logprobs and {side}_top_logprobs of equal length in SGLang's meta_info; got "
                f"{len(own or ())} and {len(top or ())} entries"
            )
        return TokenLogprobs(
            tuple(int(entry[1]) for entry in own),
            own=tuple(entry[0] for entry in own),
            largest=tuple(max((entry[0] for entry in entries or ()), default=None) for entries in top),
        )

    def made_by(self) -> dict[str, str]:
        names = ("model_path", "dtype", "kv_cache_dtype", "load_format")
        return super().made_by() | {name: str(self.model_args.get(name)) for name in names}
