"""lm-eval in two processes: the table of one process to the last bit, and ranks without documents that do no harm."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import lm_eval_jobs as jobs
import pytest
import torch
from distributed_support import run
from tokenizers import pre_tokenizers
from torch.nn import functional as F


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm_eval")
    jobs.write(folder)
    return folder


def bits_per_byte(folder):
    """By torch alone: every byte after the ones before it, the first after the model's BOS."""
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [json.loads(line)["text"] for line in (folder / "texts.jsonl").read_text().splitlines()]
    ids = [[vocab[byte] for word, _ in split.pre_tokenize_str(text) for byte in word] for text in texts]
    batch = torch.tensor([[jobs.END, *row] for row in ids])
    nats = F.cross_entropy(jobs.Logits(folder)(batch[:, :-1]).mT.double(), batch[:, 1:], reduction="sum").item()
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


@pytest.fixture(scope="module")
def two(folder):
    first, second = run(2, jobs.evaluated, str(folder))
    assert {value for key, value in second.items() if key != "error"} == {None}
    assert first["error"] == second["error"]
    return first


@pytest.mark.parametrize("model", jobs.MODELS)
def test_the_table_is_that_of_one_process(model, folder, two):
    one = jobs.evaluate(model, str(folder))
    assert two[model] == one
    assert one["results"]["texts"]["bits_per_byte,none"] == pytest.approx(bits_per_byte(folder), rel=1e-6)


@pytest.mark.parametrize(("model", "task"), [("hf", "texts"), ("xent-hf", "tokens"), ("xent-torch", "tokens")])
def test_a_rank_without_documents_changes_no_value(model, task, folder, two):
    one = jobs.evaluate(model, str(folder), 1, tasks=[task])
    changed = {"sample_len": 2}  # what lm-eval counts
    assert repr(two[model, 1]["results"][task]) == repr(one["results"][task] | changed)  # nan = nan
    assert two[model, 1]["samples"][task] == [-1, 0]


def test_lm_evals_own_metrics_can_not_stand_in_and_say_so_on_every_rank(two):
    assert two["error"].startswith("InvalidInputError: task choices: 1 documents can't be dealt out to 2 processes")


def test_the_command_in_two_processes(folder, tmp_path):
    """torchrun is what `accelerate launch` starts where there are GPUs; on CPUs the latter starts one process."""
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",
        "-m",
        "xent_metrics.cli",
        "lm-eval",
        "run",
    ]
    model = ["--model", "xent-hf", "--model_args", f"pretrained={folder}/model,dtype=float32,logits_cache=False"]
    task = ["--tasks", "tokens", "--include_path", str(folder), "--batch_size", "1", "--device", "cpu"]
    command = [sys.executable, *launcher, *model, *task, "--output_path", str(tmp_path)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (written,) = Path(tmp_path).rglob("results_*.json")
    found = json.loads(written.read_text())["results"]["tokens"]
    one = jobs.evaluate("xent-hf", str(folder), tasks=["tokens"])["results"]["tokens"]
    assert found == one
    assert "on rank 1" in done.stderr
    assert "cross_entropy" in done.stdout
