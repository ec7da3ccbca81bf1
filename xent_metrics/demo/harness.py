"""The lm-eval half of the demo: its own command, in its own process, on the checkpoint that Lightning wrote."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from xent_metrics.demo.data import BATCH_SIZE
from xent_metrics.demo.model import METRICS

__all__ = ["TASK", "Evaluation", "command", "evaluate"]

TASK = "xent_python_docs"


@dataclass(frozen=True)
class Evaluation:
    """Values and standard errors by metric, as in results.json, and the hash of the corpus."""

    values: dict[str, float]
    standard_errors: dict[str, float]
    corpus_sha256: str


def command(checkpoint: Path, output: Path) -> list[str]:
    """The command, as a user types it."""
    arguments = f"module=xent_metrics.demo.model:ByteLSTM,checkpoint={checkpoint},tokenizer=bytes,keep_order=true"
    return [
        "xent", "lm-eval", "run", "--model", "xent-torch", "--model_args", arguments, "--tasks", TASK,
        "--xent_metrics", ",".join(METRICS), "--batch_size", str(BATCH_SIZE), "--device", "cpu", "--output_path", str(output),
    ]  # fmt: skip


def evaluate(checkpoint: Path, output: Path, log: Path) -> Evaluation:
    """Run the command and read its results.json; its output goes to `log`.

    Raises:
        RuntimeError: the command failed; the message has the end of its output.
    """
    shutil.rmtree(output, ignore_errors=True)  # results of an earlier run
    typed = command(checkpoint, output)
    installed = [str(Path(sys.executable).with_name(typed[0])), *typed[1:]]
    environment = {"HF_HUB_OFFLINE": "1"} | os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with log.open("w") as printed:
        run = subprocess.run(installed, env=environment, stdout=printed, stderr=subprocess.STDOUT, check=False)
    if run.returncode:
        raise RuntimeError(f"{shlex.join(typed)} failed:\n{log.read_text()[-2000:]}")
    return _read(next(output.rglob("results_*.json")))


def _read(path: Path) -> Evaluation:
    content = json.loads(path.read_text())
    named = {name.partition(",")[0]: value for name, value in content["results"][TASK].items()}
    values = {name: named[name] for name in named if f"{name}_stderr" in named and not name.endswith("_stderr")}
    return Evaluation(
        values=values,
        standard_errors={name: named[f"{name}_stderr"] for name in values},
        corpus_sha256=content["configs"][TASK]["metadata"]["corpus_sha256"],
    )
