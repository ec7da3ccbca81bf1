"""`xent lm-eval`, and lm-eval's own command, as a user runs them."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
import torch
from support.generative_tasks import write_tasks as write_generative_tasks
from support.lm_eval import TEXTS
from support.task_yamls import write_tasks
from typer.testing import CliRunner

from xent_metrics.cli import app as cli
from xent_metrics.errors import MetricOptionError, UnknownMetricError
from xent_metrics.plugins import provenance


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny Llama with random weights and a byte-level BPE tokenizer, as a Hugging Face folder."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = str(tmp_path_factory.mktemp("llama"))
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=300, special_tokens=["<s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="<s>")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **shape)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def command(*arguments, cache):
    """Run a command of this environment offline; the finished process."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "COLUMNS": "200", "OMP_NUM_THREADS": "2"}
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, env=environment)


def results_of(folder):
    """The results.json that lm-eval wrote into a folder."""
    [file] = folder.rglob("results_*.json")
    return json.loads(file.read_text())


def numbers(folder):
    """The numbers of that results.json by task and metric."""
    results = results_of(folder)["results"]
    return {task: {key.removesuffix(",none"): value for key, value in found.items()} for task, found in results.items()}


@pytest.mark.slow
def test_the_stock_command_with_a_stock_model(folder, model, tmp_path):
    done = command("lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={model}", "--device", "cpu",
                   "--tasks", "rolling_ours,rolling_stock,choice", "--include_path", folder, "--batch_size", 2,
                   "--output_path", tmp_path / "out", "--log_samples", cache=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert results_of(tmp_path / "out")["xent_metrics"] == provenance()
    found = numbers(tmp_path / "out")
    ours, stock, choice = (found[task] for task in ("rolling_ours", "rolling_stock", "choice"))
    for name in ("bits_per_byte", "byte_perplexity", "word_perplexity"):
        assert ours[name] == pytest.approx(stock[name], rel=1e-14)
        assert stock[f"{name}_stderr"] == "N/A"
        assert re.search(rf"\|{name} *\|↓ *\|[ 0-9.]*\|± *\|[ 0-9.]+\|", done.stdout)
    assert ours["byte_perplexity_stderr"] == pytest.approx(
        ours["byte_perplexity"] * math.log(2) * ours["bits_per_byte_stderr"], rel=1e-9
    )
    samples = samples_of(tmp_path / "out", "rolling_ours")
    nats = torch.tensor([-float(sample["filtered_resps"][0]) for sample in samples], dtype=torch.float64)
    size = torch.tensor([len(sample["doc"]["text"].encode()) for sample in samples], dtype=torch.float64)
    residual = nats - nats.sum() / size.sum() * size
    per_byte = (residual.square().sum() * len(size) / (len(size) - 1)).sqrt() / size.sum()
    assert ours["bits_per_byte_stderr"] == pytest.approx(per_byte.item() / math.log(2), rel=1e-9)
    lls = [[float(resp[0]) for resp in sample["filtered_resps"]] for sample in samples_of(tmp_path / "out", "choice")]
    golds = [int(sample["target"]) for sample in samples_of(tmp_path / "out", "choice")]
    nll = [
        -torch.log_softmax(torch.tensor(row, dtype=torch.float64), 0)[gold]
        for row, gold in zip(lls, golds, strict=True)
    ]
    assert choice["cross_entropy"] == pytest.approx(sum(nll).item() / len(nll), rel=1e-12)
    assert {"acc", "acc_stderr", "bits_per_byte_stderr"} <= choice.keys()


def samples_of(folder, task):
    [file] = folder.rglob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_the_stock_command_stops_a_token_metric_before_a_stock_model_runs(folder, model, tmp_path):
    done = command("lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={model}", "--device", "cpu",
                   "--tasks", "rolling_tokens", "--include_path", folder, cache=tmp_path)  # fmt: skip
    assert done.returncode != 0
    said = " ".join(done.stderr.split())  # some versions of accelerate let rich print tracebacks, and break lines
    assert "MissingScoreError: task rolling_tokens: cross_entropy is defined over" in said
    assert "--model xent-hf" in said
    assert "Running loglikelihood" not in done.stderr


@pytest.mark.slow
def test_our_command_puts_metrics_on_existing_tasks(folder, model, tmp_path):
    done = command("xent_metrics.cli", "lm-eval", "--model", "hf", "--model_args", f"pretrained={model}", "--device", "cpu",
                   "--tasks", "both", f"--include_path={folder}", "--output_path", tmp_path / "out",
                   "--xent_metrics", "bits_per_byte,byte_perplexity:name=per_byte", cache=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert results_of(tmp_path / "out")["xent_metrics"] == provenance()
    found = numbers(tmp_path / "out")
    for task in ("rolling_stock", "rolling_other"):
        assert found[task]["per_byte"] == pytest.approx(2 ** found[task]["bits_per_byte"], rel=1e-12)
        assert found[task]["bits_per_byte_stderr"] > 0
        assert found[task]["word_perplexity_stderr"] == "N/A"  # lm-eval's own still
        assert not any("_stderr_stderr" in key for key in found[task])
    assert found["rolling_stock"]["byte_perplexity"] == found["rolling_stock"]["per_byte"]  # by lm-eval, and by us
    assert found["both"]["bits_per_byte"] == pytest.approx(found["rolling_stock"]["bits_per_byte"], rel=1e-15)


@pytest.mark.slow
def test_only_our_metrics_generate_nothing(model, tmp_path):
    write_generative_tasks(tmp_path)
    done = command("xent_metrics.cli", "lm-eval", "run", "--model", "xent-hf", "--model_args", f"pretrained={model}",
                   "--device", "cpu", "--tasks", "math,qa", f"--include_path={tmp_path}", "--output_path", tmp_path / "out",
                   "--xent_metrics", "bits_per_byte,bits_per_byte:gold=best;name=best", "--xent_only",
                   cache=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = numbers(tmp_path / "out")
    assert {key for key in found["math"] if not key.endswith("stderr")} >= {"bits_per_byte", "best"}
    assert not any("exact_match" in key for task in found.values() for key in task)
    assert found["math"]["bits_per_byte"] == found["math"]["best"]
    assert found["qa"]["bits_per_byte"] != found["qa"]["best"]
    assert "Running loglikelihood requests" in done.stderr
    assert "Running generate_until requests" not in done.stderr


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("cross_entropi", UnknownMetricError),
        ("cross_entropy:unti=bits", MetricOptionError),
        ("perplexity:x", MetricOptionError),
    ],
)
def test_metrics_that_do_not_exist_are_an_error_before_anything_runs(text, error, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["xent", "lm-eval", "run", "--model", "none", "--tasks", "none", "--xent_metrics", text]
    )
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    printed = capsys.readouterr()
    assert error.__name__ in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_its_own_help_names_our_options():
    result = CliRunner(env={"COLUMNS": "300"}).invoke(cli.app, ["lm-eval", "--help"])
    assert "--xent_metrics" in result.stdout
    assert "--xent_only" in result.stdout
    assert "xent lm-eval run --help" in result.stdout
