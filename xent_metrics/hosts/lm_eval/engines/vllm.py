"""XentVLLM, `--model xent-vllm`: lm-eval's `vllm` with token scores.

    xent lm-eval run --model xent-vllm --model_args pretrained=EleutherAI/pythia-160m,dtype=bfloat16 --tasks wikitext

vLLM reports ``{id: Logprob(logprob, rank, decoded_token)}`` of each token of a prompt: the token itself and the likeliest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model

from xent_metrics.hosts.lm_eval.engines.engine_lm import EngineLM, not_installed
from xent_metrics.hosts.lm_eval.engines.logprobs import TokenLogprobs
from xent_metrics.hosts.lm_eval.engines.probe import Generated
from xent_metrics.hosts.lm_eval.upstream import engine_outputs

try:
    from lm_eval.models.vllm_causallms import VLLM
except ModuleNotFoundError as error:
    VLLM = not_installed("xent-vllm", "pip install 'lm_eval[vllm]'", error)

__all__ = ["XentVLLM"]


@register_model("xent-vllm")
class XentVLLM(EngineLM, VLLM):  # type: ignore[misc]  # lm-eval is untyped
    """A model in vLLM, scored token by token.

    Args:
        pretrained, **kwargs: as for `vllm`.
        stride: as for `xent-hf`.
        log_tokens: as for `xent-hf`, without alternatives.

    Raises:
        MissingExtraError: vLLM isn't installed.
        EngineError: vLLM doesn't read tokens as it generates them.
    """

    model_name = "xent-vllm"

    def __init__(
        self, pretrained: str, *, stride: int | None = None, log_tokens: bool | str = False, **kwargs: Any
    ) -> None:
        super().__init__(pretrained, **kwargs)
        self.start(stride=stride, log_tokens=log_tokens)

    @property
    def window_length(self) -> int:
        """The most ids that a window reads: its last target and a generated token need two places more, as in `vllm`."""
        return int(self.max_length) - 2

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(ln p(continuation | context), whether greedy decoding gives it) of each request, with token scores."""
        if self.enable_thinking:
            return list(VLLM.loglikelihood(self, requests, disable_tqdm=disable_tqdm))  # raises
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def read(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, TokenLogprobs]]:
        """Let vLLM read the prompts in batches; where it isn't to generate, lm-eval asks it for `prompt_logprobs`."""
        size = len(prompts) if self.batch_size == "auto" else int(self.batch_size)
        for start in range(0, len(prompts), size):
            batch = prompts[start : start + size]
            outputs = engine_outputs(self, batch, generate=False)
            for place, (prompt, output) in enumerate(zip(batch, outputs, strict=True), start):
                yield place, self._reported(prompt, output.prompt_logprobs)

    def generate_greedily(self, prompt: Sequence[int], num_tokens: int) -> Generated:
        """One call for `num_tokens` tokens at temperature 0, with log-probabilities."""
        from vllm import SamplingParams

        greedy = SamplingParams(temperature=0, max_tokens=num_tokens, logprobs=1, detokenize=False)
        [output] = engine_outputs(self, [prompt], generate=True, sampling_params=greedy)
        tokens = list(output.outputs[0].token_ids)
        reported = self._reported(tokens, output.outputs[0].logprobs)
        return Generated(reported, reported.own, [self.texts.text_of(token) for token in tokens])

    def _reported(self, tokens: Sequence[int], entries: Sequence[Mapping[int, Any] | None] | None) -> TokenLogprobs:
        if entries is None or len(entries) != len(tokens):
            got = "none" if entries is None else f"{len(entries)}"
            self._refuse(f"expected a log-probability of each of {len(tokens)} tokens from vLLM; got {got}")
        numbers = [{token: _number(value) for token, value in (entry or {}).items()} for entry in entries]
        return TokenLogprobs(
            tuple(tokens),
            own=tuple(entry.get(token) for token, entry in zip(tokens, numbers, strict=True)),
            largest=tuple(max(entry.values(), default=None) for entry in numbers),
        )

    def made_by(self) -> dict[str, str]:
        names = ("model", "revision", "dtype", "quantization")
        return super().made_by() | {name: str(self.model_args.get(name)) for name in names}


def _number(value: Any) -> float:
    """vLLM's `Logprob`, or the plain number of its early versions."""
    return float(getattr(value, "logprob", value))
