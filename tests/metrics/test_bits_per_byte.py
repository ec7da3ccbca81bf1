"""Losses per byte: special tokens and byte tables."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from xent_metrics import (
    BitsPerByte,
    score_tokens,
)
from xent_metrics.errors import InvalidInputError


def value(metric, *args, **kwargs):
    metric.update(*args, **kwargs)
    return metric.compute()


def test_special_tokens_are_in_neither_sum(batch):
    logits, target = batch
    table = torch.arange(13) % 4  # every fourth class has no bytes
    metric = BitsPerByte(token_bytes=table)
    keep = (target != -100) & (table[target.clamp(min=0)] > 0)
    want = (
        F.cross_entropy(logits[keep].double(), target[keep], reduction="sum") / math.log(2) / table[target[keep]].sum()
    )
    assert value(metric, logits, target).item() == pytest.approx(want.item(), rel=1e-6)
    assert value(BitsPerByte(), score_tokens(logits, target, token_bytes=table)) == metric.compute()


def test_a_byte_table_may_be_longer_than_the_vocabulary_but_not_shorter(batch):
    table = torch.arange(20)
    assert value(BitsPerByte(token_bytes=table), *batch) == value(BitsPerByte(token_bytes=table[:13]), *batch)
    assert value(BitsPerByte(token_bytes=table.numpy()), *batch) == value(BitsPerByte(token_bytes=table), *batch)
    with pytest.raises(InvalidInputError, match=r"one entry of token_bytes per class, shape \(13,\); got \(12,\)"):
        BitsPerByte(token_bytes=table[:12]).update(*batch)
