r"""TorchLM, `--model xent-torch`: any causal `nn.Module` from ids to logits as an lm-eval model with token scores.

    xent lm-eval run --model xent-torch --tasks xent_python_docs_tokens \
        --model_args module=my_package.model:Net,checkpoint=last.ckpt,tokenizer=bytes,max_length=512

Who syncs: nobody here. Under torch.distributed each rank scores its own requests with its own copy of the module, and
lm-eval gathers the results.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.utils import simple_parse_args_string
from torch import nn

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval.models.checks import check_module
from xent_metrics.hosts.lm_eval.models.forward import Forward
from xent_metrics.hosts.lm_eval.models.logged_tokens import Results
from xent_metrics.hosts.lm_eval.models.model_args import (
    at_least_one,
    device_for,
    dtype_for,
    load_module,
    own_max_length,
)
from xent_metrics.hosts.lm_eval.models.ranks import Ranks
from xent_metrics.hosts.lm_eval.models.runner import Runner
from xent_metrics.hosts.lm_eval.models.scoring_lm import ScoringLM
from xent_metrics.hosts.lm_eval.models.tokenizers import (
    bytes_table,
    encode,
    load_tokenizer,
    prefix_token_of,
    tokenizer_content,
    tokenizer_label,
)
from xent_metrics.hosts.lm_eval.models.weights import attributes_digest, weights_digest
from xent_metrics.sums.options import readable

__all__ = ["TorchLM"]


@register_model("xent-torch")
class TorchLM(Ranks, ScoringLM):
    """Scores texts with a causal module: ids ``(B, T)`` to logits ``(B, T, V)``.

    The module may also return an object with `.logits`, or a tuple that begins with the logits.

    Args:
        module: a module, or ``package.module:Class`` (see `load_module` for `checkpoint` and `module_options`).
        tokenizer: ``"bytes"`` (ids are UTF-8 bytes, 256 begins a text, V ≥ 257), a path of a Hugging Face tokenizer, or
            an object with `encode` and `decode`.
        checkpoint: the file with the module's weights.
        module_options: keyword arguments of the module's class.
        max_length: the most ids that the module reads at once; by default its own `max_length`, or that of its `config`.
        batch_size: how many of the longest windows fit into a batch; shorter ones fill it up to as many ids.
        keep_order: run windows in the order of the requests, `batch_size` per batch, each padded to `max_length` with the
            prefix token. These are the batches of a DataLoader that doesn't shuffle. Otherwise the longest windows run
            first, and a window that equals or begins another one runs with it.
        prefix_token_id: the id that begins a text; by default the tokenizer's BOS, otherwise its EOS.
        add_bos_token: whether the tokenizer adds special tokens to a text; None leaves it to the tokenizer.
        device: the device of the module. CUDA means the CPU if there is no CUDA device (`lm_eval` asks for cuda:0 by default).
        dtype: convert the module to a dtype such as "bfloat16". Scores are float32 or wider in any case.
        log_tokens: with `--log_samples`, write the text, id, nll and bytes of every token into the samples; with "parquet",
            write the samples as Parquet, which is a fraction of the size. No value changes.
        log_alternatives: how many of the likeliest tokens to write with each.

    >>> from lm_eval.api.instance import Instance
    >>> lm = TorchLM(nn.Embedding.from_pretrained(torch.zeros(257, 257)), tokenizer="bytes", max_length=8)
    >>> [loglikelihood] = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("héllo!",), 0)])
    >>> loglikelihood.scores.nll.shape, round(-loglikelihood / 7, 3)        # 7 bytes, uniform over 257 ids: ln 257
    (torch.Size([7]), 5.549)
    """

    model_name = "xent-torch"

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
        log_tokens: bool | str = False,
        log_alternatives: int = 5,
    ) -> None:
        super().__init__()
        self.model = load_module(module, checkpoint=checkpoint, options=module_options)
        self.model.to(device=(on := device_for(device)), dtype=dtype_for(dtype)).eval()
        self.checkpoint, self._options = checkpoint, readable(dict(module_options or {}))
        self._attributes = attributes_digest(self.model)  # before the first forward, which may leave something behind
        self.tokenizer = load_tokenizer(tokenizer)
        self.batch_size = at_least_one("batch_size", batch_size)
        self.max_length = at_least_one("max_length", max_length or own_max_length(self.model))
        self.keep_order, self.add_bos_token = keep_order, add_bos_token
        self._begins = prefix_token_of(self.tokenizer) if prefix_token_id is None else int(prefix_token_id)
        self.results = Results.of(self.tokenizer, log_tokens=log_tokens, log_alternatives=log_alternatives)
        self._runner = Runner(self._forward(on), keep_order=keep_order)
        self.vocab_size = self._check()

    def _forward(self, device: torch.device) -> Forward:
        return Forward(
            self.model,
            device=device,
            fill=self.prefix_token_id,
            row_length=self.max_length if self.keep_order else None,
            context=self.around_forward,
            bytes_table=partial(bytes_table, self.tokenizer),
        )

    def _check(self) -> int:
        return check_module(
            self.forward, prefix_token=self.prefix_token_id, tokenizer=self.tokenizer, max_length=self.max_length
        )

    def around_forward(self) -> AbstractContextManager[Any]:
        """The context within which the module runs, for a subclass to override."""
        return nullcontext()

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> TorchLM:
        """Make the model from the text of `--model_args`, ``a=1,b=2``, and the other options of the command."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> TorchLM:
        """Make the model from arguments by name; an unknown or repeated one raises `InvalidInputError`."""
        additional = {name: value for name, value in (additional_config or {}).items() if value is not None}
        known = list(inspect.signature(cls).parameters)
        for name in (*arg_dict, *additional):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise InvalidInputError(f"xent-torch takes no {name!r}.{hint} It takes: {', '.join(known)}")
            if name in arg_dict and name in additional:
                raise InvalidInputError(f"{name} is given in --model_args and as --{name}; give it once, as --{name}")
        return cls(**arg_dict, **additional)

    # What lm-eval asks for.

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Not offered: this model only scores."""
        raise NotImplementedError(
            "xent-torch scores texts and doesn't generate; generate_until tasks need `--model hf` or `--model xent-hf`"
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids of a text, with special tokens as in `hf`: none are added to a text that begins with the prefix token."""
        prefix = self.tokenizer.decode([self.prefix_token_id])
        if add_special_tokens is None:
            add_special_tokens = False if prefix and string.startswith(prefix) else self.add_bos_token
        return encode(self.tokenizer, string, add_special_tokens=add_special_tokens)

    @property
    def device(self) -> torch.device:
        """The device that the module is on."""
        return self.forward.device

    @property
    def eot_token_id(self) -> int:
        """The id that begins a text: lm-eval's name for it where there is no BOS token."""
        return self._begins

    @property
    def prefix_token_id(self) -> int:
        """The id that begins a text."""
        return self._begins

    @property
    def tokenizer_name(self) -> str:
        return tokenizer_label(self.tokenizer).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as one text, by the tokenizer's own template."""
        if not hasattr(self.tokenizer, "apply_chat_template"):
            raise InvalidInputError(f"{self.tokenizer_name} has no chat template; leave --apply_chat_template out")
        text = self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )  # fmt: skip
        return str(text)

    def get_model_info(self) -> dict[str, Any]:
        """What results.json says about the model."""
        parameters = list(self.model.parameters())
        return {
            "module": f"{type(self.model).__module__}:{type(self.model).__qualname__}",
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
            "model_num_parameters": sum(parameter.numel() for parameter in parameters),
            "model_dtype": str(parameters[0].dtype) if parameters else None,
            "max_length": self.max_length,
            "keep_order": self.keep_order,
        }

    def made_by(self) -> dict[str, str]:
        info = self.get_model_info()
        key = {name: str(info[name]) for name in ("module", "checkpoint", "model_dtype", "max_length")}
        return key | {
            "tokenizer": tokenizer_content(self.tokenizer), "prefix_token_id": str(self.prefix_token_id),
            "add_bos_token": str(self.add_bos_token), "options": self._options, "attributes": self._attributes,
            "weights": weights_digest(self.model),
        }  # fmt: skip

    @property
    def _num_ids(self) -> int:
        return self.vocab_size
