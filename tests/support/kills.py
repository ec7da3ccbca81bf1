"""`make faults`: kills writers at random moments, by SIGKILL, and counts what isn't whole afterwards.

Each job runs in a child of this process until it is killed; what it wrote is looked at after every kill, and in the end the job
runs to its end. The moments are spread over the time that the job takes.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lm_eval import simple_evaluate

from support.forks import start, status_of
from support.hf_model import TEXT, tiny_model, tiny_tokenizer
from support.logged_runs import write_token_run
from support.resume_jobs import loaded, write
from xent_metrics import CrossEntropy
from xent_metrics.analysis.report import write_report
from xent_metrics.analysis.runs import read_run
from xent_metrics.doctor.mending import mend_yaml
from xent_metrics.doctor.tasks import check_yaml
from xent_metrics.files import is_leftover
from xent_metrics.hosts.lm_eval import XentHFLM
from xent_metrics.hosts.lm_eval.rescore import rescore
from xent_metrics.hosts.lm_eval.rescored_run import write_rescored
from xent_metrics.hosts.lm_eval.task_manager import XentTaskManager
from xent_metrics.view.export import export_site
from xent_metrics.view.folder import RunFolder
from xent_metrics.view.site import ASSETS, Site, asset

YAML = "task: t\noutput_type: multiple_choice\nmetric_list:\n  - metric: acc_nrom\n"


class Job:
    """Something that writes into a folder: `work` writes, and `torn` yields what isn't whole there."""

    def __init__(self, inputs: Path) -> None:
        self.inputs = inputs

    def work(self, folder: Path) -> None:
        """Write."""
        raise NotImplementedError

    def torn(self, folder: Path) -> Iterator[str]:
        """What isn't whole."""
        raise NotImplementedError


class Report(Job):
    """`xent report`."""

    def work(self, folder: Path) -> None:
        write_report([read_run(self.inputs / "runs/a")], folder / "page.html")

    def torn(self, folder: Path) -> Iterator[str]:
        return (path.name for path in folder.glob("*.html") if not path.read_bytes().rstrip().endswith(b"</html>"))


class Export(Job):
    """`xent view --export`, again and again into one folder."""

    def work(self, folder: Path) -> None:
        export_site(Site(RunFolder(self.inputs / "runs"), most_documents=2), folder / "site")

    def torn(self, folder: Path) -> Iterator[str]:
        for path in (folder / "site").glob("*"):
            end = asset(path.name) if path.name in ASSETS else b"</html>"
            if not is_leftover(path.name) and not path.read_bytes().rstrip().endswith(end.rstrip()):
                yield path.name


class Rescore(Job):
    """`xent rescore -o`, into a folder of its own each time."""

    def work(self, folder: Path) -> None:
        run = read_run(self.inputs / "runs/a")
        write_rescored(run, rescore(run, [{"metric": "perplexity"}]), folder / f"{time.time_ns()}")

    def torn(self, folder: Path) -> Iterator[str]:
        return (f"{path}: {problem}" for path in folder.rglob("results_*") for problem in read_run(path).problems)


class Mend(Job):
    """`xent doctor --write`, of a YAML that is wrong again each time."""

    def work(self, folder: Path) -> None:
        for _ in range(20):
            (path := folder / f"{time.time_ns()}.yaml").write_text(YAML)
            os.rename(path, folder / "t.yaml")
            mend_yaml(folder / "t.yaml", check_yaml(folder / "t.yaml"))

    def torn(self, folder: Path) -> Iterator[str]:
        wanted = (YAML, YAML.replace("acc_nrom", "acc_norm"))
        return (path.name for path in folder.glob("t.yaml") if path.read_text() not in wanted)


class Checkpoints(Job):
    """Lightning's checkpoints with the sums of a metric, which go on from the newest that can be read."""

    def work(self, folder: Path) -> None:
        module, trainer = (
            self._module(),
            pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", barebones=True),
        )
        trainer.strategy.connect(module)
        for _ in range(20):
            module.metric.update(torch.zeros(4, 8), torch.zeros(4, dtype=torch.long))
            trainer.save_checkpoint(folder / f"{module.metric.counts()['counted']:06}.ckpt", weights_only=True)

    def torn(self, folder: Path) -> Iterator[str]:
        for path in folder.glob("*.ckpt"):
            module = self._module()
            try:
                module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
            except Exception as error:
                yield f"{path.name}: {error}"
                continue
            if module.metric.counts()["counted"] != int(path.stem):
                yield f"{path.name}: other sums"

    @staticmethod
    def _module() -> Any:
        module = pl.LightningModule()
        module.metric, module.weights = CrossEntropy(), torch.nn.Linear(300, 300)
        module.metric.persistent(True)
        return module


class Cache(Job):
    """An evaluation by lm-eval with `--use_cache`, which goes on from the cache."""

    def __init__(self, inputs: Path) -> None:
        super().__init__(inputs)
        words = TEXT.split()
        pages = [{"text": " ".join(words[i : i + 9 + i])} for i in range(30)]
        write(inputs, {"pages": pages, "questions": [], "stories": []})
        tiny_model("llama_tied").save_pretrained(inputs / "model")
        tiny_tokenizer().save_pretrained(inputs / "model")
        self.model = loaded(str(inputs), XentHFLM, 1)
        # In a child, too: what evaluates starts threads, and what has threads isn't forked.
        assert status_of(start(lambda: self._keep(inputs / "values", self._values(None))), 300) == 0

    def _values(self, cache: Path | None) -> str:
        results = simple_evaluate(
            model=self.model, tasks=["pages"], bootstrap_iters=0, use_cache=None if cache is None else str(cache),
            task_manager=XentTaskManager(include_path=str(self.inputs), include_defaults=False),
        )  # fmt: skip
        return repr({key: value for key, value in results["results"]["pages"].items() if "," in key})

    def work(self, folder: Path) -> None:
        if (values := self._values(folder / "cache")) != (self.inputs / "values").read_text():
            self._keep(folder / "other values", values)

    @staticmethod
    def _keep(path: Path, values: str) -> None:
        path.write_text(values)

    def torn(self, folder: Path) -> Iterator[str]:
        return (path.name for path in folder.glob("other values"))


def killed(job: Job, folder: Path, kills: int, draw: random.Random) -> tuple[int, list[str]]:
    """Kill the job that often; returns how many kills came before its end, and what was torn."""
    torn: list[str] = []
    began = time.monotonic()
    assert status_of(start(quiet(job, folder / "whole")), 300) == 0, f"{type(job).__name__} fails when nobody kills it"
    takes, hits = time.monotonic() - began, 0
    for _ in range(kills):
        child = start(quiet(job, folder / "killed"))
        time.sleep(draw.uniform(0, takes))
        os.kill(child, signal.SIGKILL)
        hits += status_of(child) == -signal.SIGKILL
        torn += job.torn(folder / "killed")
    assert status_of(start(quiet(job, folder / "killed"))) == 0, f"{type(job).__name__} can't go on"
    return hits, torn + list(job.torn(folder / "killed"))


def quiet(job: Job, folder: Path) -> Callable[[], None]:
    folder.mkdir(parents=True, exist_ok=True)

    def work() -> None:
        for number in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        job.work(folder)

    return work


def main(kills: int) -> int:
    """Kill every job that often; returns how many files were torn."""
    torch.set_num_threads(1)
    total = 0
    with tempfile.TemporaryDirectory() as name:
        inputs = Path(name) / "inputs"
        write_token_run(inputs / "runs/a")
        for kind in (Report, Export, Rescore, Mend, Checkpoints, Cache):
            hits, torn = killed(kind(inputs), Path(name) / kind.__name__, kills, random.Random(0))
            left = sum(is_leftover(path.name) for path in (Path(name) / kind.__name__).rglob(".*"))
            print(
                f"{kind.__name__}: {hits} kills, {left} files left beside, {len(torn)} torn {torn[:3] or ''}",
                flush=True,
            )
            total += len(torn)
    return total


if __name__ == "__main__":
    sys.exit(min(main(int(sys.argv[1])), 1))
