"""Modules and checkpoints from the command line's arguments."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from support.byte_model import TEXTS, ByteNet, LightningByteNet
from support.byte_model import rolling as rolling_requests
from torch import nn

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval import TorchLM


def test_lightning_checkpoint_and_state_dict_give_the_same_bits(tmp_path):
    module = LightningByteNet(size=12)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "lightning.ckpt")
    torch.save(module.net.state_dict(), tmp_path / "weights.pt")
    expected = TorchLM(module, max_length=16).loglikelihood_rolling(rolling_requests(*TEXTS))
    by_lightning = TorchLM(LightningByteNet, checkpoint=tmp_path / "lightning.ckpt", max_length=16)
    by_state_dict = TorchLM(ByteNet, checkpoint=str(tmp_path / "weights.pt"), module_options={"size": 12})
    assert by_lightning.model.hparams.size == 12
    assert by_lightning.loglikelihood_rolling(rolling_requests(*TEXTS)) == expected
    assert by_state_dict.loglikelihood_rolling(rolling_requests(*TEXTS)) == expected


def test_a_checkpoint_of_something_else(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InvalidInputError, match="doesn't fit ByteNet"):
        TorchLM(ByteNet, checkpoint=tmp_path / "linear.pt")
    with pytest.raises(InvalidInputError, match="holds a value of type list; expected a state dict"):
        TorchLM(ByteNet, checkpoint=tmp_path / "list.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "can't be loaded: "),
        (b"weights", "can't be loaded: "),
        (ByteNet(), "A whole module isn't read, because that would run code"),
        ({"state_dict": 5}, "holds a value of type int; expected a state dict"),
        ({1: torch.ones(2)}, "expected a state dict"),
    ],
    ids=["empty", "text", "module", "number", "numbered"],
)
def test_a_file_without_weights(tmp_path, content, said):
    write(tmp_path / "file.pt", content)
    with pytest.raises(InvalidInputError, match=said):
        TorchLM(ByteNet, checkpoint=tmp_path / "file.pt", module_options={"size": 12})


@pytest.mark.parametrize("content", [b"", b"weights", ByteNet()], ids=["empty", "text", "module"])
def test_a_file_that_is_no_checkpoint_of_lightnings(tmp_path, content):
    write(tmp_path / "file.ckpt", content)
    with pytest.raises(InvalidInputError, match="can't be loaded: "):
        TorchLM(LightningByteNet, checkpoint=tmp_path / "file.ckpt")


def write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
