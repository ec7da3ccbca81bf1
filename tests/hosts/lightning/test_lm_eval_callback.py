"""LMEvalCallback in a real Trainer: lm-eval's values of the current module, and training that isn't disturbed."""

import json
import math
import multiprocessing
import signal
import time

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from support.lightning import QUIET
from support.trackers import in_tensorboard
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from xent_metrics.errors import InvalidInputError, MetricOptionError, UnknownMetricError
from xent_metrics.hosts.lightning import LMEvalCallback

TEXTS = ["héllo wörld", "two  words", "\tand a third text\n"]


BOS = 256


class Bytes(LightningModule):
    """Bigrams of bytes, with dropout that is off in eval mode."""

    max_length = 8

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(BOS + 1, BOS + 1), nn.Dropout(0.5))
        self.net[0].weight.data = torch.randn(BOS + 1, BOS + 1, generator=torch.Generator().manual_seed(0))
        self.drawn = []

    def forward(self, ids):
        return self.net(ids)

    def training_step(self, batch, batch_idx):
        self.drawn.append(torch.rand(()).item())
        return F.cross_entropy(self(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def validation_step(self, batch, batch_idx):
        assert not self.net.training

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def by_hand(module, texts):
    """Bits per byte: every byte given the previous one, the first given BOS."""
    nats = 0.0
    for text in texts:
        ids = torch.tensor([BOS, *text.encode()])
        logits = module.net[0](ids[:-1]).double()
        nats += F.cross_entropy(logits, ids[1:], reduction="sum").item()
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


@pytest.fixture
def folder(tmp_path):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "texts.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "texts.yaml").write_text(
        "task: texts\nclass: !function xent_metrics.hosts.lm_eval.XentTask\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'texts.jsonl'}}}}}\n"
        "test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list:\n  - metric: bits_per_byte\n  - metric: token_accuracy\n",
        encoding="utf-8",
    )
    return tmp_path


def data():
    return DataLoader(torch.randint(BOS, (4, 6), generator=torch.Generator().manual_seed(1)), batch_size=2)


def fit(*callbacks, **options):
    torch.manual_seed(0)
    module = Bytes()
    trainer = Trainer(accelerator="cpu", callbacks=list(callbacks), **{**QUIET, "max_epochs": 2, **options})
    trainer.fit(module, data(), data())
    return module, trainer


def test_values_are_those_of_the_module_and_training_is_not_disturbed(folder):
    callback = LMEvalCallback(["texts"], include_path=[str(folder)], every_n_epochs=2)
    module, trainer = fit(callback)
    values = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("lm_eval/")}
    assert set(values) == {
        f"lm_eval/texts/{name}{suffix}" for name in ("bits_per_byte", "token_accuracy") for suffix in ("", "_stderr")
    }
    assert values["lm_eval/texts/bits_per_byte"] == pytest.approx(by_hand(module, TEXTS), rel=1e-6)
    assert 0 < values["lm_eval/texts/bits_per_byte_stderr"] < 10

    assert values == callback.evaluate(trainer, module)  # to the last bit: results.json has the same

    plain, _ = fit()
    assert plain.drawn == module.drawn
    assert torch.equal(plain.net[0].weight, module.net[0].weight)
    assert module.net.training


@pytest.mark.parametrize(("every_n_epochs", "expected"), [(1, [0, 1, 2]), (2, [1])])
def test_it_runs_every_nth_epoch_and_not_in_the_sanity_check(folder, monkeypatch, every_n_epochs, expected):
    epochs = []
    monkeypatch.setattr(
        LMEvalCallback, "evaluate", lambda self, trainer, module: epochs.append(trainer.current_epoch) or {}
    )
    fit(LMEvalCallback(["texts"], include_path=[str(folder)], every_n_epochs=every_n_epochs), max_epochs=3)
    assert epochs == expected


def test_reliability_diagrams_go_to_the_loggers(folder):
    entry = {"metric": "expected_calibration_error", "num_bins": 4}
    callback = LMEvalCallback(["texts"], include_path=[str(folder)], metrics=[entry])
    _, trainer = fit(callback, max_epochs=1, logger=TensorBoardLogger(folder))
    trainer.logger.experiment.close()
    values, plots = in_tensorboard(folder)
    assert values["lm_eval/texts/expected_calibration_error_stderr"] > 0
    assert plots == {"lm_eval/texts/expected_calibration_error_plot"}


def test_processes_that_lm_eval_forks_end_on_sigterm_as_without_lightning(folder, monkeypatch):
    """lm-eval ends those of a bootstrap by SIGTERM, and waits for them."""
    fork, found = multiprocessing.get_context("fork"), []

    def wait(started):
        started.set()
        time.sleep(60)

    def evaluate(*_, **__):
        child = fork.Process(target=wait, args=(started := fork.Event(),))
        child.start()
        started.wait(30)
        child.terminate()
        child.join(10)
        found.extend([child.exitcode, signal.getsignal(signal.SIGTERM)])
        child.kill()
        return {"results": {}}

    monkeypatch.setattr("lm_eval.simple_evaluate", evaluate)
    fit(LMEvalCallback(["texts"], include_path=[str(folder)]), max_epochs=1)
    assert found[0] == -signal.SIGTERM
    assert found[1] != signal.SIG_DFL  # Lightning's, in this process


def test_a_development_run_evaluates_a_few_documents(folder):
    callback = LMEvalCallback(
        ["texts"], include_path=[str(folder)], every_n_epochs=5, options={"samples": {"texts": [2]}}
    )
    module, trainer = fit(callback, fast_dev_run=2)
    assert trainer.callback_metrics["lm_eval/texts/bits_per_byte"] == pytest.approx(
        by_hand(module, TEXTS[:2]), rel=1e-6
    )


def test_metrics_submodule_options_and_precision(folder):
    callback = LMEvalCallback(
        ["texts"], include_path=[str(folder)], every_n_epochs=2, submodule="net", max_length=5, batch_size=2,
        options={"limit": 2}, metrics=[{"metric": "cross_entropy", "unit": "bits", "name": "bits_per_token"}],
    )  # fmt: skip
    module = Bytes()
    autocast = []
    module.net[1].register_forward_hook(lambda *_: autocast.append(torch.is_autocast_enabled("cpu")))
    trainer = Trainer(accelerator="cpu", callbacks=[callback], **QUIET, precision="bf16-mixed")
    trainer.validate(module, data(), verbose=False)
    found = {name.rpartition("/")[2]: value.item() for name, value in trainer.callback_metrics.items()}
    assert found["bits_per_token"] == found["bits_per_byte"] == pytest.approx(by_hand(module, TEXTS[:2]))
    assert all(autocast)
    assert len(autocast) > 3


def test_lm_evals_own_tasks_are_known_too():
    manager = LMEvalCallback(["lambada_openai", "xent_python_docs"])._task_manager
    assert {"lambada_openai", "xent_python_docs"} <= set(manager.all_tasks)
    with pytest.raises(InvalidInputError, match=r"called 'lambada_opnai'\. Did you mean 'lambada_openai'"):
        manager.load(["lambada_opnai"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tasks": ["texts"], "metrics": [{"metric": "perplexities"}]}, UnknownMetricError, "perplexity"),
        ({"tasks": ["texts"], "submodule": "model"}, InvalidInputError, "submodule='model'"),
        ({"tasks": ["texts"], "submodule": "net.1"}, InvalidInputError, "max_length="),
        ({"tasks": ["texts"], "prefix_token_id": 257}, InvalidInputError, "prefix_token_id="),
        ({"tasks": ["texts"], "options": {"limits": 2}}, MetricOptionError, "Did you mean 'limit'"),
        ({"tasks": ["texts"], "options": {"task_manager": 2}}, MetricOptionError, "no 'task_manager'"),
        ({"tasks": "texts"}, MetricOptionError, "tasks is a list"),
        ({"tasks": ["texts"], "every_n_epochs": 0}, MetricOptionError, "every_n_epochs"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_wrong_arguments_raise_before_the_first_step(command, arguments, error, message, folder, monkeypatch):
    steps = []
    monkeypatch.setattr(Bytes, "training_step", lambda *batch: steps.append("train"))
    monkeypatch.setattr(Bytes, "validation_step", lambda *batch: steps.append("validate"))

    def run():
        callback = LMEvalCallback(**arguments, include_path=[str(folder)])
        loaders = [data(), data()] if command == "fit" else [data()]
        getattr(Trainer(accelerator="cpu", callbacks=callback, **QUIET, max_epochs=1), command)(Bytes(), *loaders)

    with pytest.raises(error, match=message):
        run()
    assert not steps


def test_another_id_may_begin_a_text(folder):
    class PlainBytes:
        def encode(self, text):
            return list(text.encode())

        def decode(self, ids):
            return bytes(i for i in ids if i < BOS).decode(errors="replace")

    def run(**options):
        callback = LMEvalCallback(["texts"], include_path=[str(folder)], tokenizer=PlainBytes(), **options)
        trainer = Trainer(accelerator="cpu", callbacks=callback, **QUIET)
        trainer.validate(Bytes(), data(), verbose=False)
        return trainer.callback_metrics["lm_eval/texts/bits_per_byte"]

    with pytest.raises(InvalidInputError, match="pass prefix_token_id="):
        run()
    assert run(prefix_token_id=BOS) == pytest.approx(by_hand(Bytes(), TEXTS), rel=1e-6) != run(prefix_token_id=10)
