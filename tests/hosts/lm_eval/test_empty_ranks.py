"""lm-eval in two processes: the same bits as in one process, also if a rank has no documents."""

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_eval.api import metrics as lm_eval_metrics
from support import lm_eval_jobs as jobs
from support.distributed import run
from tokenizers import pre_tokenizers
from torch.nn import functional as F

from xent_metrics.hosts.lm_eval.documents import DocumentValue
from xent_metrics.hosts.lm_eval.empty_ranks import WithoutPlaceholders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm_eval")
    jobs.write(folder)
    return folder


def bits_per_byte(folder):
    """Computed with torch alone: each byte is predicted from those before it, the first from the model's BOS."""
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
    assert set(second.values()) == {None}
    return first


@pytest.mark.parametrize("model", jobs.MODELS)
def test_the_table_is_that_of_one_process(model, folder, two):
    one = jobs.evaluate(model, str(folder))
    assert two[model] == one
    assert one["results"]["texts"]["bits_per_byte,none"] == pytest.approx(bits_per_byte(folder), rel=1e-6)


@pytest.mark.parametrize("model", jobs.MODELS)
def test_a_rank_without_documents_changes_nothing(model, folder, two):
    """It changes neither lm-eval's own metrics in the task, such as acc, nor the number of documents."""
    one = jobs.evaluate(model, str(folder), 1)
    assert repr(two[model, 1]["results"]) == repr(one["results"])  # nan = nan
    assert "acc,none" in one["results"]["choices"]
    assert all(found == [-1, 0] for found in two[model, 1]["samples"].values())


@pytest.mark.parametrize("aggregate", [lm_eval_metrics.mean, lm_eval_metrics.median, lm_eval_metrics.matthews_corrcoef])
def test_a_placeholder_is_left_out_of_lm_evals_values_counts_and_standard_errors(aggregate):
    documents = [(1, 1), (0, 1), (0, 0)] if aggregate is lm_eval_metrics.matthews_corrcoef else [1.0, 0.0, 3.0]
    values = [*documents, pickle.loads(pickle.dumps(DocumentValue.placeholder()))]
    without = pickle.loads(pickle.dumps(WithoutPlaceholders(aggregate)))
    assert without(values) == aggregate(documents)
    assert values == documents
    of_both = [lm_eval_metrics.stderr_for_metric(f, 100) for f in (without, aggregate)]
    assert of_both[0](values) == of_both[1](documents)


def test_the_command_in_two_processes(folder, tmp_path):
    """With torchrun, which `accelerate launch` uses on GPUs. On CPUs `accelerate launch` starts one process."""
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
