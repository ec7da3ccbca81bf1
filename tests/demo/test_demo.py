"""The demo: its data, its verdict, and a whole quick run as a user starts it."""

import json
import subprocess
import sys

import matplotlib.image
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from xent_metrics.demo import __main__ as main
from xent_metrics.demo.data import BATCH_SIZE, WINDOW, Crops, validation_loader
from xent_metrics.demo.harness import TASK, Evaluation, command, evaluate
from xent_metrics.demo.model import METRICS, ByteLSTM
from xent_metrics.demo.picture import draw
from xent_metrics.demo.progress import progress_callback
from xent_metrics.demo.report import comparison
from xent_metrics.demo.train import train, validate
from xent_metrics.hosts.lm_eval.python_docs import CORPUS_SHA256, documents

SAME = dict.fromkeys(METRICS, 0.1)


def test_crops_are_seeded_and_never_predict_what_begins_a_text():
    crops = Crops(50)
    inputs, targets = zip(*[crops[i] for i in range(50)], strict=True)
    assert torch.equal(torch.stack(inputs), torch.stack([Crops(50)[i][0] for i in range(50)]))
    assert not torch.equal(crops[0][0], Crops(50, seed=1)[0][0])
    begins = torch.stack(inputs)[:, 1:] == 256
    assert begins.any()
    assert torch.equal(torch.stack(targets)[:, :-1] == -100, begins)
    assert torch.equal(torch.stack(targets)[:, :-1][~begins], torch.stack(inputs)[:, 1:][~begins])


def test_validation_predicts_every_byte_of_the_held_out_documents_once():
    batches = list(validation_loader())
    predicted = torch.cat([target[target != -100] for _, target in batches])
    assert bytes(predicted.tolist()).decode() == "".join(documents("validation").values())
    assert {ids.shape[1] for ids, _ in batches} == {WINDOW}


def test_a_model_trained_by_lightning_scores_the_same_in_lm_eval(tmp_path):
    """The parts that the command line puts together, and what they leave behind."""
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
    assert len(model.training_losses) == 3
    assert [step for step, _ in model.validation_losses] == [3]
    assert model.validation_losses[0][1] == in_lightning["cross_entropy"]
    assert "bits/byte" in (tmp_path / "shown").read_text()

    draw(model, tmp_path / "demo.png")
    picture = matplotlib.image.imread(tmp_path / "demo.png")
    assert picture.shape[:2] == (750, 1650)
    assert picture[..., :3].std() > 0.1


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
    """The command line with training and scoring replaced; calling the fixture sets what lm-eval says."""
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


def test_the_table_shows_a_difference_of_one_bit():
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    other = SAME | {"bits_per_byte": 0.1 + 2**-56}
    console.print(comparison(SAME, Evaluation(other, SAME, "")))
    text = console.export_text()
    assert "-1e-17" in text
    assert max(map(len, text.splitlines())) <= 80
    assert all(name.split("_")[0] in text for name in METRICS)


def test_a_failed_command_shows_why(tmp_path):
    with pytest.raises(RuntimeError, match="there is no such file"):
        evaluate(tmp_path / "missing.ckpt", tmp_path / "out", tmp_path / "log")


def test_the_command_is_what_one_would_type(tmp_path):
    typed = command(tmp_path / "x.ckpt", tmp_path / "out")
    assert typed[:3] == ["xent", "lm-eval", "run"]
    assert typed[typed.index("--tasks") + 1] == TASK == "xent_python_docs"
    assert typed[typed.index("--xent_metrics") + 1].split(",") == list(METRICS)
    arguments = typed[typed.index("--model_args") + 1].split(",")
    assert "keep_order=true" in arguments  # the batches of Lightning's validation
    assert typed[typed.index("--batch_size") + 1] == str(BATCH_SIZE)
