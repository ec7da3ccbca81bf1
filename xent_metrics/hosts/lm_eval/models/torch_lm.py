"""TorchLM, `--model xent-torch`: any causal `nn.Module` from ids to logits as an lm-eval model with token scores.

    xent lm-eval run --model xent-torch --tasks xent_python_docs_tokens \\
        --model_args module=my_package.model:Net,checkpoint=last.ckpt,tokenizer=bytes,max_length=512

Texts become windows (windows.py), windows become batches, and each batch's logits become scores of the tokens that it
predicts; a request gets the plain value that lm-eval expects, with these scores behind it (results.py).

Who syncs: nobody here. Under torch.distributed each rank scores its own requests with its own copy of the module, and
lm-eval gathers what came of them.
"""

from __future__ import annotations

import difflib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import simple_parse_args_string
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval.extra_scores import asked_for
from xent_metrics.hosts.lm_eval.models.logged_tokens import Results
from xent_metrics.hosts.lm_eval.models.model_args import (
    at_least_one,
    device_for,
    dtype_for,
    load_module,
    own_max_length,
    yes_or_no,
)
from xent_metrics.hosts.lm_eval.models.ranks import Ranks
from xent_metrics.hosts.lm_eval.models.tokenizers import bytes_table, encode, ids_needed, load_tokenizer, prefix_id
from xent_metrics.hosts.lm_eval.models.windows import Batch, Window, batches, continuation_window, rolling_windows
from xent_metrics.scoring.score import score_tokens
from xent_metrics.scoring.scores import ExtraScore, TokenScores

__all__ = ["TorchLM"]


@register_model("xent-torch")
class TorchLM(Ranks, TemplateLM):  # type: ignore[misc]  # lm-eval is untyped
    """Scores texts by a causal module: ids ``(B, T)`` to logits ``(B, T, V)``, or to what has or begins with them.

    Args:
        module: a module, or ``package.module:Class`` (see `load_module` for `checkpoint` and `module_options`).
        tokenizer: ``"bytes"`` (ids are UTF-8 bytes, 256 begins a text, V ≥ 257), a path of a Hugging Face tokenizer, or
            an object with `encode` and `decode`.
        max_length: the most ids that the module reads at once; its own `max_length` or `config` if they say.
        batch_size: windows a batch.
        keep_order: run the windows as they come, each padded to `max_length`: the batches of a DataLoader that doesn't
            shuffle. Otherwise by length, longest first (windows.py).
        prefix_token_id: stands before a text; the tokenizer's BOS or else EOS.
        add_bos_token: whether the tokenizer puts special tokens before texts; None leaves it to the tokenizer.
        device: of the module; a CUDA device where there is none means the CPU (`lm_eval` asks for cuda:0 by default).
        dtype: "bfloat16" and the like, to convert the module; scores are float32 or wider whatever it is.
        log_tokens: with `--log_samples`, write every token's text, id, nll and bytes into the samples; no value changes.
        log_alternatives: and as many of the likeliest tokens beside each.

    >>> from lm_eval.api.instance import Instance
    >>> lm = TorchLM(nn.Embedding.from_pretrained(torch.zeros(257, 257)), tokenizer="bytes", max_length=8)
    >>> [loglikelihood] = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("héllo!",), 0)])
    >>> loglikelihood.scores.nll.shape, round(-loglikelihood / 7, 3)        # 7 bytes, uniform over 257 ids: ln 257
    (torch.Size([7]), 5.549)
    """

    gives_token_scores = True  # XentTask asks for it before the model runs

    def __init__(
        self,
        module: nn.Module | str | Any = None,
        *,
        tokenizer: Any = "bytes",
        checkpoint: str | os.PathLike[str] | None = None,
        module_options: Mapping[str, Any] | None = None,
        max_length: int | None = None,
        batch_size: int | str = 1,
        keep_order: bool = False,
        prefix_token_id: int | None = None,
        add_bos_token: bool | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        log_tokens: bool = False,
        log_alternatives: int = 5,
    ) -> None:
        super().__init__()
        self._device = device_for(device)
        self.model = load_module(module, checkpoint=checkpoint, options=module_options)
        self.model.to(device=self._device, dtype=dtype_for(dtype)).eval()
        self.checkpoint = checkpoint
        self.tokenizer = load_tokenizer(tokenizer)
        self.batch_size = at_least_one("batch_size", batch_size)
        self.max_length = at_least_one("max_length", max_length or own_max_length(self.model))
        self.keep_order = keep_order
        self.add_bos_token = add_bos_token
        self._prefix = prefix_id(self.tokenizer) if prefix_token_id is None else int(prefix_token_id)
        self._results = Results(self.tokenizer if yes_or_no("log_tokens", log_tokens) else None, log_alternatives)
        self._extra_scores: Mapping[str, ExtraScore] = {}
        self.vocab_size = self._probe()
        self.token_bytes = bytes_table(self.tokenizer, self.vocab_size)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> TorchLM:
        """From `--model_args`, `a=1,b=2`, and what else the command was given."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> TorchLM:
        """From arguments by name. An unknown one, or one given twice, raises `InvalidInputError`."""
        additional = {name: value for name, value in (additional_config or {}).items() if value is not None}
        known = list(inspect.signature(cls).parameters)
        for name in (*arg_dict, *additional):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise InvalidInputError(f"xent-torch takes no {name!r}.{hint} It takes: {', '.join(known)}")
            if name in arg_dict and name in additional:
                raise InvalidInputError(
                    f"{name} stands in --model_args, and the command gives it too: use --{name} alone"
                )
        return cls(**arg_dict, **additional)

    # What lm-eval asks for.

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(ln p(continuation | context), whether greedy decoding gives it) of each request, with its tokens' scores."""
        for request in requests:
            if not request.args[1]:
                raise InvalidInputError(
                    f"an empty continuation has no tokens to score; check doc_to_target: {request.doc}"
                )
        with self._with_scores_for(requests):
            results: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=self._quiet(disable_tqdm))
        return results

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        windows = [continuation_window(ctx, cont, max_length=self.max_length) for _, ctx, cont in requests]
        results: list[tuple[float, bool]] = [
            self._results.loglikelihood(scores) for scores in self.score(windows, disable_tqdm=disable_tqdm)
        ]
        for (texts, _, _), result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """ln p(text) of each request, every token predicted once, with its tokens' scores; 0 for an empty text."""
        ids = [self.tok_encode(request.args[0]) for request in requests]
        texts = [rolling_windows(text, prefix=self._prefix, max_length=self.max_length) for text in ids]
        windows = [window for text in texts for window in text]
        with self._with_scores_for(requests):
            nothing = self._scores(torch.zeros(0, self.vocab_size), torch.zeros(0, dtype=torch.long))
            found = iter(self.score(windows, disable_tqdm=self._quiet(disable_tqdm)))
        results: list[float] = [
            self._results.rolling(TokenScores.cat([nothing, *(next(found) for _ in text)])) for text in texts
        ]
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, result)
        return results

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take lm-eval's cache, if what it holds is what this model and these options give."""
        info = self.get_model_info()
        made_by = {name: str(info[name]) for name in ("module", "checkpoint", "model_dtype", "max_length")}
        made_by |= {
            "tokenizer": self.tokenizer_name, "prefix_token_id": str(self._prefix), "add_bos_token": str(self.add_bos_token),
        }  # fmt: skip
        self._results.check_cache(cache_hook.dbdict, made_by)
        super().set_cache_hook(cache_hook)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Not offered: this model only scores."""
        raise NotImplementedError(
            "xent-torch scores texts and doesn't generate; generate_until tasks need `--model hf` or `--model xent-hf`"
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids of a text; special tokens as `hf` puts them: not twice where the text begins with the prefix."""
        prefix = self.tokenizer.decode([self._prefix])
        if add_special_tokens is None:
            add_special_tokens = False if prefix and string.startswith(prefix) else self.add_bos_token
        return encode(self.tokenizer, string, add_special_tokens=add_special_tokens)

    @property
    def eot_token_id(self) -> int:
        return self._prefix

    @property
    def prefix_token_id(self) -> int:
        return self._prefix

    @property
    def tokenizer_name(self) -> str:
        name = getattr(self.tokenizer, "name_or_path", type(self.tokenizer).__name__)
        return str(name).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The tokenizer's own chat template."""
        if not hasattr(self.tokenizer, "apply_chat_template"):
            raise InvalidInputError(f"{self.tokenizer_name} has no chat template; leave --apply_chat_template out")
        text = self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )  # fmt: skip
        return str(text)

    def get_model_info(self) -> dict[str, Any]:
        """What results.json says of the model."""
        parameters = list(self.model.parameters())
        return {
            "module": f"{type(self.model).__module__}:{type(self.model).__qualname__}",
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
            "model_num_parameters": sum(parameter.numel() for parameter in parameters),
            "model_dtype": str(parameters[0].dtype) if parameters else None,
            "max_length": self.max_length,
            "keep_order": self.keep_order,
        }

    # Scoring.

    @torch.no_grad()
    def score(self, windows: Sequence[Window], *, disable_tqdm: bool = True) -> list[TokenScores]:
        """The scores of each window's targets, on the CPU, in the order of `windows`."""
        found: dict[int, TokenScores] = {}
        grouped = batches(
            windows,
            batch_size=self.batch_size,
            fill=self._prefix,
            keep_order=self.keep_order,
            max_length=self.max_length,
        )
        with tqdm(total=len(windows), desc="Scoring windows", disable=disable_tqdm) as bar:
            for batch in grouped:
                scores = self._score_batch(batch, windows)
                found |= scores
                bar.update(len(scores))
        return [found[place] for place in range(len(windows))]

    def _score_batch(self, batch: Batch, windows: Sequence[Window]) -> dict[int, TokenScores]:
        """By place. Only the positions that predict targets are scored: each row's bits are its own."""
        logits = self._logits(batch.ids)
        return {
            place: self._scores(logits[row, windows[place].scored], torch.tensor(windows[place].targets))
            for row, places in enumerate(batch.places)
            for place in places
        }

    def _scores(self, logits: Tensor, targets: Tensor) -> TokenScores:
        extra_scores = {**self._extra_scores, **self._results.extra_scores}
        return score_tokens(logits, targets, token_bytes=self.token_bytes, extra_scores=extra_scores).to("cpu")

    @contextmanager
    def _with_scores_for(self, requests: Sequence[Instance]) -> Iterator[None]:
        """The extra scores that the requests ask for, in all that is scored inside."""
        self._extra_scores = asked_for(requests)
        try:
            yield
        finally:
            self._extra_scores = {}

    def _logits(self, ids: Tensor) -> Tensor:
        output = self.model(ids.to(self._device))
        logits = getattr(output, "logits", output)
        if isinstance(logits, tuple | list):
            logits = logits[0]
        if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != ids.shape:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
            raise InvalidInputError(
                f"{type(self.model).__name__} gave {got} for ids {tuple(ids.shape)}; expected logits (B, T, V), "
                "an object with `.logits`, or a tuple that begins with them"
            )
        return logits

    @torch.no_grad()
    def _probe(self) -> int:
        """V, after two short rows have shown that the module takes the tokenizer's ids and doesn't look ahead."""
        other = int(self._prefix == 0)
        ids = torch.tensor([[self._prefix, self._prefix], [self._prefix, other]])[:, : self.max_length]
        try:
            logits = self._logits(ids)
        except IndexError as error:
            raise InvalidInputError(
                f"{type(self.model).__name__} doesn't take the id {self._prefix}, which begins a text: {error}. "
                "A model of bytes needs 257 ids; prefix_token_id=… names another one"
            ) from error
        needed = max(self._prefix + 1, ids_needed(self.tokenizer))
        if logits.shape[-1] < needed:
            raise InvalidInputError(
                f"{type(self.model).__name__} gives {logits.shape[-1]} logits; {self.tokenizer_name} needs {needed}"
            )
        if not torch.allclose(logits[0, 0].float(), logits[1, 0].float(), rtol=1e-2, atol=1e-3, equal_nan=True):
            raise InvalidInputError(
                f"{type(self.model).__name__} looks ahead: its first logits change with the second id. "
                "Loglikelihoods need a causal model, logits[t] of the ids up to t"
            )
        return int(logits.shape[-1])

    def _quiet(self, disable_tqdm: bool) -> bool:
        return disable_tqdm or self.rank != 0 or not sys.stderr.isatty()
