"""The progress bar in a terminal, and in a log, which it doesn't fill."""

import io
import sys

import torch
from support.hf_model import tiny_model, tiny_tokenizer
from support.lm_eval_requests import request
from torch import nn

from xent_metrics.hosts.lm_eval import TorchLM, XentHFLM
from xent_metrics.hosts.lm_eval.models.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_gets_its_beginning_and_end(capsys):
    assert list(progress_bar(range(100_000), desc="steps")) == list(range(100_000))
    first, last = filter(None, capsys.readouterr().err.replace("\n", "\r").split("\r"))
    assert first.startswith("steps:   0%")
    assert last.startswith("steps: 100%")


def test_a_terminal_gets_it_at_tqdms_pace(monkeypatch):
    assert progress_bar(total=1).mininterval == 30
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert progress_bar(total=1).mininterval == 0.1


def test_it_can_be_hidden(capsys):
    assert list(progress_bar("ab", hidden=True)) == ["a", "b"]
    assert capsys.readouterr().err == ""


def test_models_show_in_a_log_what_they_are_at(capsys):
    lm = TorchLM(nn.Embedding.from_pretrained(torch.zeros(257, 257)), max_length=8)
    requests = [request("loglikelihood_rolling", "some text")]
    lm.loglikelihood_rolling(requests, disable_tqdm=True)
    assert capsys.readouterr().err == ""
    lm.loglikelihood_rolling(requests)
    assert "Running loglikelihood_rolling requests: 100%" in capsys.readouterr().err
    lm = XentHFLM(pretrained=tiny_model("llama_tied"), tokenizer=tiny_tokenizer(), device="cpu")
    assert "checking" not in capsys.readouterr().err
    lm.loglikelihood_rolling(requests)
    assert "xent-hf: checking LlamaForCausalLM: 100%" in capsys.readouterr().err
