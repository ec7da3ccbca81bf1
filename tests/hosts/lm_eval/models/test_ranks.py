"""TorchLM in several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.byte_model import ByteNet

from xent_metrics.hosts.lm_eval import TorchLM

_RANKS = """
import sys, torch
from support.lm_eval_requests import request
from xent_metrics.hosts.lm_eval import TorchLM

rank, path = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
torch.manual_seed(0)
lm = TorchLM(torch.nn.Embedding(257, 257), max_length=8)
assert (lm.rank, lm.world_size) == (rank, 2)
assert lm.all_gather(torch.tensor(rank + 5)).tolist() == [5, 6]
[value] = lm.loglikelihood_rolling([request("loglikelihood_rolling", "ab" * (rank + 1))])
gathered = lm.gather_object([value])
lm.barrier()
if rank == 0:
    print([len(part[0].scores) for part in gathered])
else:
    assert gathered is None
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_ranks_gather_scores(tmp_path):
    command = [sys.executable, "-c", _RANKS]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "rendezvous")],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0].strip().endswith("[2, 4]")


_EVALUATE = """
import json, sys, torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from xent_metrics.hosts.lm_eval import TorchLM

rank, world_size, path, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if world_size > 1:
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world_size)
torch.set_num_threads(1)
torch.manual_seed(0)
lm = TorchLM(torch.nn.Embedding(257, 257), max_length=128, keep_order=True)
manager = TaskManager(include_path=folder, include_defaults=False)
tasks = ["xent_python_docs_tokens", "xent_python_docs_cloze"]
results = simple_evaluate(lm, tasks=tasks, task_manager=manager, limit=5, bootstrap_iters=0)
if rank == 0:
    print("RESULTS", json.dumps(results["results"], sort_keys=True))
else:
    assert results is None
if world_size > 1:
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_evaluate_to_the_same_bits_as_one(tmp_path):
    folder = Path(__file__).parents[4] / "task_configs"

    def evaluate(world_size):
        arguments = [str(world_size), str(tmp_path / f"rendezvous{world_size}"), str(folder)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", _EVALUATE, str(rank), *arguments], stdout=subprocess.PIPE, text=True
            )
            for rank in range(world_size)
        ]
        outputs = [process.communicate(timeout=300)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * world_size
        return json.loads(outputs[0].rpartition("RESULTS")[2])

    one, two = evaluate(1), evaluate(2)
    for task in one:
        values = {key for key in one[task] if not key.partition(",")[0].endswith("_stderr")}
        assert {key: two[task][key] for key in values} == {key: one[task][key] for key in values}
        errors = {key for key in one[task] if isinstance(one[task][key], float)} - values
        assert {key: two[task][key] for key in errors} == pytest.approx({key: one[task][key] for key in errors})
    assert one["xent_python_docs_tokens"]["cross_entropy,none"] > 0
    assert one["xent_python_docs_cloze"]["cross_entropy_stderr,none"] > 0


def test_one_process_is_rank_0_of_1():
    lm = TorchLM(ByteNet())
    assert (lm.rank, lm.world_size, lm.gather_object("x")) == (0, 1, ["x"])
