"""XentHFLM, `--model xent-hf`: lm-eval's `hf` with token scores, at a fraction of its time and memory.

    xent lm-eval run --model xent-hf --model_args pretrained=EleutherAI/pythia-160m --tasks wikitext,arc_easy

Every argument of `hf` works. A prefix that windows share runs once (packing.py), only scored positions go through
`lm_head` (hf_forward.py), and every shortcut is checked (verify.py, sharing_check.py).

Who syncs: nobody here. Under `accelerate launch` each process scores its own requests, and lm-eval gathers the results.
On CPUs, ``accelerate launch --cpu --num_processes 2`` starts a single process unless it is given an MPI hostfile; use

    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m xent_metrics.cli lm-eval run …
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from xent_metrics.errors import InvalidInputError, PluginError
from xent_metrics.hosts.lm_eval.extra_scores import asks_for_scores
from xent_metrics.hosts.lm_eval.models.checks import check_backend, check_positions, check_prefix_token, check_stride
from xent_metrics.hosts.lm_eval.models.hf_forward import HFForward
from xent_metrics.hosts.lm_eval.models.invariant import FixedShapes
from xent_metrics.hosts.lm_eval.models.logged_tokens import Results
from xent_metrics.hosts.lm_eval.models.model_args import at_least_one, yes_or_no
from xent_metrics.hosts.lm_eval.models.runner import Runner
from xent_metrics.hosts.lm_eval.models.scoring_lm import ScoringLM
from xent_metrics.hosts.lm_eval.models.tokenizers import bytes_table, text_ids, tokenizer_content
from xent_metrics.hosts.lm_eval.models.upstream import attention_implementation
from xent_metrics.hosts.lm_eval.models.verdict_file import VerdictFile
from xent_metrics.hosts.lm_eval.models.verify import check_causal, restore, verify
from xent_metrics.hosts.lm_eval.models.weights import content_digest, weights_digest
from xent_metrics.hosts.lm_eval.upstream import set_max_length, set_rank
from xent_metrics.sums.options import readable

__all__ = ["XentHFLM"]

log = logging.getLogger(__name__)

#: Keys of configurations, of models and of adapters.
_NOT_OF_THE_MODEL = (
    "_name_or_path",
    "transformers_version",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
)
#: Arguments that only say how requests are batched.
_NOT_OF_THE_FORWARD = ("batch_size", "max_batch_size", "logits_cache")
_CPU_TOKENS = 2048  # ids per batch on a CPU: more are no faster, and intermediate results leave its caches


@register_model("xent-hf")
class XentHFLM(ScoringLM, HFLM):  # type: ignore[misc]  # lm-eval is untyped
    """Any causal model of Hugging Face transformers, scored token by token.

    Args:
        pretrained, *args, **kwargs: as for `hf`. `batch_size` is how many of the longest requests of a call fit into a
            batch; shorter ones fill it up to as many tokens (on a CPU at most 2,048). On a GPU, 1 (the default) means as
            many ids as fit into its free memory, at most 65,536; "auto" at most `max_batch_size` of the longest requests of
            those. With `logits_cache=False` requests share nothing. Log-probabilities are float32 whatever the
            `softmax_dtype`, or wider if that is.
        stride: score long texts by overlapping windows, each of which predicts `stride` new tokens after
            ``max_length − stride`` tokens of context. By default windows are lm-eval's own, which hardly overlap.
        invariant: run every window in a shape that depends on it alone (invariant.py), so that its scores have the same bits
            for every `batch_size`, order, `--limit` and number of processes on this machine. Requests share nothing then,
            and `batch_size` has no effect.
        log_tokens: with `--log_samples`, write the text, id, nll and bytes of every token into the samples; with "parquet",
            write the samples as Parquet, which is a fraction of the size. No value changes.
        log_alternatives: how many of the likeliest tokens to write with each.

    Raises:
        InvalidInputError: a model that can't be loaded or isn't causal, a `stride` that doesn't fit, bits that `invariant` can't
            keep, or a request that has no tokens to score or more than a window holds; always before any request runs.

    >>> from lm_eval.api.instance import Instance
    >>> from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    >>> letters = ["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]                 # one token per byte
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

    model_name = "xent-hf"

    def __init__(
        self,
        pretrained: Any,
        *args: Any,
        stride: int | None = None,
        invariant: bool = False,
        log_tokens: bool | str = False,
        log_alternatives: int = 5,
        **kwargs: Any,
    ) -> None:
        _check_names(kwargs)
        if kwargs.get("max_length") is not None:  # `hf` takes 0 for the model's own
            kwargs["max_length"] = at_least_one("max_length", kwargs["max_length"])
        try:
            super().__init__(pretrained, *args, **kwargs)
        except (OSError, TypeError) as error:
            shown = repr(pretrained) if isinstance(pretrained, str) else type(pretrained).__name__
            raise InvalidInputError(f"{shown} can't be loaded: {error}") from error
        self._join_processes()
        self._check_model()
        self._configured = _configured(self.model)  # before the first forward, which may change it
        self.results = Results.of(self.tokenizer, log_tokens=log_tokens, log_alternatives=log_alternatives)
        check_stride(stride, self.max_length)
        self.stride, self.invariant = stride, yes_or_no("invariant", invariant)
        self._unchecked = self._forward()
        self._recall([pretrained, *args], kwargs)
        if self.invariant:
            self._runner  # noqa: B018  # bits that it can't keep are refused now

    @cached_property
    def _runner(self) -> Runner:
        """Made for the first request that is scored: checks take a while, and a run may be refused before, say for its cache."""
        forward, ids = self._unchecked, text_ids(self.tokenizer, self._num_ids)
        if not self._restored():
            verdict = verify(forward, ids, self.max_length, quiet=self.rank != 0)
            if self._verdict_file:
                self._verdict_file.write(verdict)
        return Runner(forward, fixed=FixedShapes(forward, ids, self.max_length) if self.invariant else None)

    def _recall(self, args: Sequence[Any], options: Mapping[str, Any]) -> None:
        """Look for the verdict on a model that was loaded by its name. Without one, refuse what isn't causal."""
        self._verdict_file = None
        if isinstance(args[0], str):
            given = {name: value for name, value in options.items() if name not in _NOT_OF_THE_FORWARD}
            key = self._loaded() | {"device": self.batching()["device"], "options": readable([*args, given])}
            self._verdict_file = VerdictFile.of(self._unchecked, key)
        self._verdict = self._verdict_file.read() if self._verdict_file else None
        if self._verdict is None:
            check_causal(self._unchecked, text_ids(self.tokenizer, self._num_ids), self.max_length)

    def _restored(self) -> bool:
        """True if the verdict of an earlier start holds; its shortcuts are on then."""
        if self._verdict is None or self._verdict_file is None:
            return False
        try:
            restore(self._unchecked, self._verdict)
        except (InvalidInputError, PluginError) as error:
            log.info("xent-hf: %s is checked again: %s", self._unchecked.name, error)
            return False
        log.info("xent-hf: that was found at an earlier start (%s)", self._verdict_file.path)
        return True

    @property
    def forward(self) -> HFForward:
        """The model with the shortcuts that agree with it."""
        return cast(HFForward, self._runner.forward)

    def _get_backend(self, *args: Any, **kwargs: Any) -> None:
        """`HFLM._get_backend`, read in lm-eval 0.4.13, refuses models that aren't causal before they are loaded.

        If it moves, `_check_model` still refuses them, after they are loaded.
        """
        super()._get_backend(*args, **kwargs)
        check_backend(self.config, self.backend)

    def _join_processes(self) -> None:
        """Take this process's share of the documents on CPUs too, where `hf` runs all of them in every process."""
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None and accelerator.num_processes > 1 and self.world_size == 1:
            set_rank(self, accelerator.process_index, accelerator.num_processes)

    def _check_model(self) -> None:
        check_backend(self.model.config, self.backend)
        if self.batch_size == "auto":
            self.max_batch_size: int = at_least_one("max_batch_size", self.max_batch_size)
        else:
            at_least_one("batch_size", self.batch_size)
        set_max_length(self, at_least_one("max_length", self.max_length))
        check_positions(self.model, self.max_length)
        check_prefix_token(self.prefix_token_id, self._num_ids)

    def _forward(self) -> HFForward:
        return HFForward(
            self.model,
            device=self.device,
            autocast=self.mixed_precision_dtype,
            score_dtype=self.softmax_dtype if self.softmax_dtype == torch.float64 else None,
            bytes_table=partial(bytes_table, self.tokenizer),
        )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(ln p(continuation | context), whether greedy decoding gives it) of each request, with token scores."""
        if getattr(self, "enable_thinking", False):  # lm-eval 0.5 has no such attribute
            return list(HFLM.loglikelihood(self, requests, disable_tqdm=disable_tqdm))  # raises
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The generated texts, with token scores where a request asks for them."""
        if self.enable_thinking and any(map(asks_for_scores, requests)):
            raise InvalidInputError(
                "enable_thinking=True leaves the thinking out of a generated text, so that the text can't be scored as the model "
                "wrote it. Leave the metrics with `over: generated` out, or enable_thinking"
            )
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, *args: Any, **kwargs: Any) -> list[int]:
        """As in `hf`, which fails on a tokenizer without a prefix token."""
        if self.prefix_token_id is None and add_special_tokens is None:
            add_special_tokens = True if self.add_bos_token is None else self.add_bos_token
        return list(super().tok_encode(string, add_special_tokens, *args, **kwargs))

    def made_by(self) -> dict[str, str]:
        return self._loaded() | {
            "softmax_dtype": str(self.softmax_dtype), "tokenizer": tokenizer_content(self.tokenizer),
            "prefix_token_id": str(self.prefix_token_id), "add_bos_token": str(self.add_bos_token),
            "stride": str(self.stride), "invariant": str(self.invariant), "weights": weights_digest(self.model),
        }  # fmt: skip

    def _loaded(self) -> dict[str, str]:
        """Which model was loaded, and how, by name."""
        names = {"model": self.pretrained, "revision": self.revision, "peft": self.peft, "delta": self.delta}
        key = {name: value for name, value in names.items() if isinstance(value, str)}
        return key | {
            "class": self._unchecked.name, "dtype": str(self._unchecked.dtype), "config": self._configured,
            "attention": str(attention_implementation(self.model.config)), "max_length": str(self.max_length),
        }  # fmt: skip

    def batching(self) -> dict[str, str]:
        """As in `ScoringLM`; with `invariant`, no bit depends on the batch size."""
        found = super().batching()
        return {name: value for name, value in found.items() if name != "batch_size" or not self.invariant}

    @property
    def _num_ids(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])

    def _batch_tokens(self, longest: int, override_bs: int | None) -> int:
        rows = self.max_batch_size if self.batch_size == "auto" else override_bs or self.batch_size
        asked = int(rows * longest)
        if self.device.type == "cpu":
            return min(asked, _CPU_TOKENS)
        if self.batch_size != "auto" and rows > 1:
            return asked
        fit = self.forward.ids_that_fit(longest)
        log.info("xent-hf: batches of up to %s ids", fit or asked)
        if fit is None:  # the device doesn't say how much memory it has
            return asked
        return min(asked, fit) if self.batch_size == "auto" else fit


def _configured(model: Any) -> str:
    """A digest of a model's configuration and its adapters', without where they were loaded from and what wrote them."""
    configs = {"": model.config, **getattr(model, "peft_config", {})}
    return content_digest(repr({name: _in_order(config.to_dict()) for name, config in sorted(configs.items())}))


def _in_order(value: Any) -> Any:
    """A value to be shown, with the entries of its dicts in a fixed order: some configurations come from sets."""
    if isinstance(value, dict):
        kept = {str(name): _in_order(each) for name, each in value.items() if name not in _NOT_OF_THE_MODEL}
        return dict(sorted(kept.items()))
    return [_in_order(each) for each in value] if isinstance(value, list | tuple) else readable(value)


def _check_names(names: Iterable[str]) -> None:
    """Refuse misspelt arguments of ours: `hf` would pass them on to the model."""
    for name in names:
        if near := difflib.get_close_matches(
            name, ("stride", "invariant", "log_tokens", "log_alternatives"), n=1, cutoff=0.8
        ):
            raise InvalidInputError(f"xent-hf has no argument {name!r}; did you mean {near[0]!r}?")
