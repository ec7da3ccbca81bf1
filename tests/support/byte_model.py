"""Small causal modules of bytes for `TorchLM`, texts and requests for them."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
import torch
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from support.lm_eval_requests import request

TEXTS = [
    "The assert statement is a convenient way to insert debugging assertions into a program.",
    "Short.",
    "naïve café – 日本語 🎉 and then a longer tail of plain words so that it spans several windows of the model.",
    "",
]


def rolling(*texts: str) -> list[Instance]:
    return [request("loglikelihood_rolling", text, number=i) for i, text in enumerate(texts)]


def pairs(*requests: Sequence[str]) -> list[Instance]:
    return [request("loglikelihood", *given, number=i, doc={"id": i}) for i, given in enumerate(requests)]


def byte_bpe(adds_bos: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 320 ids; id 0 begins and ends texts, and is added to them if `adds_bos`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")


class ByteNet(nn.Module):
    """Causal: the running sum of the embeddings."""

    max_length = 16

    def __init__(self, vocab_size: int = 257, size: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.embed = nn.Embedding.from_pretrained(torch.randn(vocab_size, size, generator=generator))
        self.head = nn.Linear(size, vocab_size)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(vocab_size, size, generator=generator))
            self.head.bias.zero_()

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(ids).cumsum(1)))


class LightningByteNet(pl.LightningModule):
    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = ByteNet(size=size)

    def forward(self, ids: Tensor) -> tuple[Tensor, str]:
        return (self.net(ids), "a state that nobody asked for")


class Watched(nn.Module):
    """Keeps the ids that it is run on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ByteNet()
        self.seen: list[Tensor] = []

    def forward(self, ids: Tensor) -> Tensor:
        self.seen.append(ids.clone())
        return self.net(ids)
