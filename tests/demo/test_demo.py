"""The demo as a whole: its parts together, a quick run by the command, and the exit status."""

import json
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from xent_metrics.demo import __main__ as main
from xent_metrics.demo.harness import TASK, Evaluation, evaluate
from xent_metrics.demo.model import METRICS, ByteLSTM
from xent_metrics.demo.progress import progress_callback
from xent_metrics.demo.train import train, validate
from xent_metrics.hosts.lm_eval.python_docs import CORPUS_SHA256

SAME = dict.fromkeys(METRICS, 0.1)


def test_a_model_trained_by_lightning_scores_the_same_in_lm_eval(tmp_path):
    """The parts that the command line puts together, and the files they leave."""
    torch.manual_seed(0)
    model = ByteLSTM(hidden=16, steps=3)
    checkpoint = train(model, 3, tmp_path, progress_callback(Console(file=(tmp_path / "shown").open("w"))))
    threads = torch.get_num_threads()
    in_lightning = validate(model, checkpoint)
    in_lm_eval = evaluate(checkpoint, tmp_path / "lm_eval", tmp_path / "log")
    assert torch.get_num_threads() == threads
    assert in_lightning == {name: in_lm_eval.values[name] for name in METRICS}
    assert all(error > 0 for error in in_lm_eval.standard_errors.values())
    assert in_lm_eval.corpus_sha256 == CORPUS_SHA256
    assert "bits/byte" in (tmp_path / "shown").read_text()


@pytest.mark.slow
def test_the_demo_as_a_user_runs_it(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "xent_metrics.demo", "--quick", "--output", "out"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Both hosts give exactly the same bits." in run.stdout
    assert "A toy" in run.stdout
    assert run.stderr == ""
    results = json.loads(next((tmp_path / "out" / "lm_eval").rglob("results_*.json")).read_text())
    for name in METRICS:
        assert run.stdout.count(repr(results["results"][TASK][f"{name},none"])) >= 2
    assert results["config"]["module"] == "xent_metrics.demo.model:ByteLSTM"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "byte-lstm.ckpt", "demo.png", "lm_eval", "lm_eval.log"
    }  # fmt: skip


@pytest.fixture
def without_work(monkeypatch, tmp_path):
    """The command line without training and scoring; calling the fixture sets lm-eval's values."""
    monkeypatch.setattr(main, "train", lambda *args: tmp_path / "byte-lstm.ckpt")
    monkeypatch.setattr(main, "validate", lambda *args: SAME)
    monkeypatch.setattr(main, "draw", lambda *args: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    app = main.typer.Typer()
    app.command()(main.demo)

    def run(values, corpus=CORPUS_SHA256):
        said = Evaluation(SAME | values, SAME, corpus)
        monkeypatch.setattr(main, "evaluate", lambda *args: said)
        return CliRunner().invoke(app, ["--quick", "--output", str(tmp_path)])

    return run


def test_the_exit_status_is_the_verdict(without_work):
    assert without_work({}).exit_code == 0
    for different in ({"perplexity": 0.1 + 1e-17 * 8}, {"cross_entropy": float("nan")}):
        name = next(iter(different))
        assert without_work(different).exit_code == 1, f"{name} differs in its last bit"
    assert without_work({}, corpus="other").exit_code == 1
