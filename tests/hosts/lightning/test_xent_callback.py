"""XentCallback in real Trainers of both packages: values, stages, precision, resuming, options, YAML."""

import csv
import importlib
import math

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from support.lightning import (
    BYTES,
    METRICS,
    PACKAGES,
    QUIET,
    Sequences,
    V,
    bigrams,
    expected,
    loader,
    nats_and_tokens,
    trainer,
    values_of,
)
from torch.nn import functional as F

from xent_metrics import RatioMetric, get_metric, score_tokens
from xent_metrics.errors import InvalidTargetError, MetricOptionError, UnknownMetricError
from xent_metrics.hookspecs import hookimpl
from xent_metrics.hosts.lightning import XentCallback


@pytest.mark.parametrize("package", PACKAGES)
def test_fit_logs_displays_and_monitors_values_with_errors(package, tmp_path):
    pl = importlib.import_module(package)
    callbacks = importlib.import_module(f"{package}.callbacks")
    loggers = importlib.import_module(f"{package}.loggers")
    xent = XentCallback(METRICS, stages=["train", "val", "test"])
    best = callbacks.ModelCheckpoint(tmp_path, monitor="val/cross_entropy", filename="{epoch}")
    stop = callbacks.EarlyStopping("val/cross_entropy", patience=1)  # lr = 0: it doesn't improve
    run = trainer(
        xent, best, stop, package=package, max_epochs=5, log_every_n_steps=1, enable_checkpointing=True,
        logger=loggers.CSVLogger(tmp_path, name="csv", version=0),
    )  # fmt: skip
    run.fit(bigrams(package), loader(7, seed=5), loader())
    assert isinstance(xent, pl.Callback)
    assert run.current_epoch == 2

    want = expected(Sequences(10)) | expected(Sequences(7, seed=5), stage="train")
    assert len(want) == 16
    assert {name: run.callback_metrics[name] for name in want} == want  # the same bits
    assert {name: shown for name, shown in run.progress_bar_metrics.items() if "/" in name} == {
        name: value.item() for name, value in want.items() if not name.endswith("_stderr")
    }
    assert best.best_model_score == want["val/cross_entropy"]
    with (tmp_path / "csv/version_0/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/perplexity"]]
    assert [float(row["val/perplexity_stderr"]) for row in rows] == [want["val/perplexity_stderr"].item()] * 2

    (tested,) = run.test(bigrams(package), loader(), verbose=False)
    assert tested == {name.replace("val/", "test/"): value.item() for name, value in expected(Sequences(10)).items()}


def test_values_and_errors_are_numpys():
    data = Sequences(10)
    y, x = nats_and_tokens(data)
    ratio = y.sum() / x.sum()
    error = math.sqrt(len(x) / (len(x) - 1) * ((y - ratio * x) ** 2).sum()) / x.sum()
    (found,) = trainer(XentCallback(METRICS)).validate(bigrams(), loader(), verbose=False)
    assert found["val/cross_entropy"] == pytest.approx(ratio, rel=1e-6)
    assert found["val/cross_entropy_stderr"] == pytest.approx(error, rel=1e-6)
    assert found["val/perplexity_stderr"] == pytest.approx(np.exp(ratio) * error, rel=1e-6)


def test_a_skipped_training_step_does_not_count():
    def step(self, batch, batch_idx):
        return given(self, batch, batch_idx) if batch_idx != 1 else None

    module = bigrams(training_step=step)
    given = bigrams().__class__.training_step
    run = trainer(XentCallback(METRICS, stages=["train"]), max_epochs=1)
    run.fit(module, loader())
    data = Sequences(10)
    data.target[3:6] = -100
    assert run.callback_metrics["train/perplexity_stderr"] == expected(data, stage="train")["train/perplexity_stderr"]


def test_each_of_several_loaders_has_its_own_values():
    run = trainer(XentCallback(METRICS))
    run.validate(bigrams(), [loader(), loader(4, seed=8)], verbose=False)
    for index, data in enumerate((Sequences(10), Sequences(4, seed=8))):
        want = {f"{name}/dataloader_idx_{index}": value for name, value in expected(data).items()}
        assert {name: run.callback_metrics[name] for name in want} == want


def test_the_sanity_check_does_not_count():
    run = trainer(XentCallback(["cross_entropy"]), max_epochs=1, num_sanity_val_steps=1)
    run.fit(bigrams(), loader(), loader(5, seed=2))
    assert run.callback_metrics["val/cross_entropy"] == expected(Sequences(5, seed=2))["val/cross_entropy"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "16-mixed"])
def test_precision_plugins_leave_the_sums_exact(precision):
    """The values are those of the very logits that the steps returned, whatever the plugin does to modules and tensors."""
    seen = []

    def step(self, batch, batch_idx):
        hidden = F.one_hot(batch["ids"], V).to(self.table.weight.dtype)
        logits = F.linear(hidden, self.table.weight.T)  # what autocast casts
        seen.append(score_tokens(logits, batch["targets"]))
        return {"logits": logits, "targets": batch["targets"]}

    run = trainer(XentCallback(METRICS), precision=precision, max_epochs=1, num_sanity_val_steps=0)
    # On the CPU Lightning replaces fp16 by bfloat16.
    assert run.precision == {"16-mixed": "bf16-mixed"}.get(precision, precision)
    run.fit(bigrams(validation_step=step), loader(), loader(200, seed=4))
    want = values_of(METRICS, seen)
    assert {name: run.callback_metrics[name] for name in want} == want
    exact = expected(Sequences(200, seed=4))["val/cross_entropy"]
    assert (want["val/cross_entropy"] == exact) == (precision == "32-true")
    assert run.callback_metrics["val/cross_entropy"].item() == pytest.approx(exact.item(), rel=0.01)


def test_an_epoch_continues_from_its_checkpoint(tmp_path):
    class Resumable(torch.utils.data.DataLoader):
        """Continues after the last batch drawn."""

        drawn = 0

        def __iter__(self):
            for index, batch in enumerate(super().__iter__()):
                if index >= self.drawn:
                    self.drawn = index + 1
                    yield batch
            self.drawn = 0

        def state_dict(self):
            return {"drawn": self.drawn}

        def load_state_dict(self, state):
            self.drawn = state["drawn"]

    data = Sequences(10)
    xent = XentCallback(METRICS, stages=["train", "val"])
    save = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    first = trainer(xent, save, max_epochs=1, enable_checkpointing=True)
    first.fit(bigrams(), Resumable(data, batch_size=3), loader())
    want = {name: first.callback_metrics[name] for name in expected(data, stage="train")}
    assert want == expected(data, stage="train")

    second = trainer(XentCallback(METRICS, stages=["train", "val"]), max_epochs=1)
    second.fit(
        bigrams(), Resumable(data, batch_size=3), loader(), ckpt_path=tmp_path / "step=2.ckpt", weights_only=True
    )
    assert {name: second.callback_metrics[name] for name in want} == want


def test_two_callbacks_keep_their_checkpoints_apart(tmp_path):
    pair = [XentCallback(["cross_entropy"], stages=["train"]), XentCallback(["perplexity"], stages=["train"])]
    run = trainer(*pair, max_epochs=1)
    run.fit(bigrams(), loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    assert pair[0].state_key != pair[1].state_key


class Data(LightningDataModule):
    def val_dataloader(self):
        return loader()


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.inner = bigrams()

    def validation_step(self, batch, batch_idx):
        return self.inner.validation_step(batch, batch_idx)


def byte_table():
    return BYTES


def test_a_yaml_configures_it(tmp_path):
    callback = {
        "class_path": "xent_metrics.hosts.lightning.XentCallback",
        "init_args": {
            "metrics": [
                "cross_entropy",
                "perplexity",
                {"metric": "bits_per_byte", "token_bytes": f"{__name__}.byte_table"},
                "token_accuracy",
            ],
            "stages": ["val"],
            "adapter": f"{__name__}.adapt_inner",
        },
    }
    settings = {"trainer": {"accelerator": "cpu", "callbacks": [callback], **QUIET}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    arguments = ["validate", "--config", str(tmp_path / "config.yaml"), "--verbose=false"]
    cli = LightningCLI(Model, Data, args=arguments, save_config_callback=None)
    want = expected(Sequences(10))
    assert {name: cli.trainer.callback_metrics[name] for name in want} == want


def adapt_inner(module, output, batch):
    return {"logits": module.inner(batch["ids"]), "targets": batch["targets"]}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"metrics": ["cross_entropie"]}, UnknownMetricError, "Did you mean 'cross_entropy'"),
        ({"metrics": [{"metric": "cross_entropy", "units": "bits"}]}, MetricOptionError, "no option 'units'"),
        ({"metrics": []}, MetricOptionError, "expected metrics as a list"),
        ({"metrics": "cross_entropy"}, MetricOptionError, "expected metrics as a list"),
        ({"metrics": [{"unit": "bits"}]}, MetricOptionError, "expected a metric's name"),
        ({"metrics": [get_metric("perplexity")]}, MetricOptionError, "Write {'metric': 'perplexity', …} instead"),
        ({"metrics": ["perplexity", "perplexity"]}, MetricOptionError, "appears twice"),
        ({"metrics": ["perplexity"], "stages": ["validation"]}, MetricOptionError, "train, val, test"),
        ({"metrics": ["perplexity"], "adapter": "no.such:thing"}, MetricOptionError, "names no object"),
        ({"metrics": [{"metric": "bits_per_byte", "token_bytes": "no:such"}]}, MetricOptionError, "names no object"),
    ],
)
def test_a_wrong_option_raises_when_the_callback_is_built(arguments, error, message):
    with pytest.raises(error, match=message):
        XentCallback(**arguments)


def test_targets_out_of_range_raise_at_the_epochs_end():
    def step(self, batch, batch_idx):
        return {"logits": self(batch["ids"]), "targets": batch["targets"] + V * (batch_idx == 1)}

    with pytest.raises(InvalidTargetError, match="cross_entropy: "):
        trainer(XentCallback(["cross_entropy"])).validate(bigrams(validation_step=step), loader())


def test_nan_logits_give_nan_or_are_omitted_on_request():
    def step(self, batch, batch_idx):
        logits = self(batch["ids"])
        return {"logits": logits * torch.nan if batch_idx == 1 else logits, "targets": batch["targets"]}

    with pytest.warns(UserWarning, match="rows gave nan"):
        (found,) = trainer(XentCallback(["cross_entropy"])).validate(
            bigrams(validation_step=step), loader(), verbose=False
        )
    assert math.isnan(found["val/cross_entropy"])
    assert math.isnan(found["val/cross_entropy_stderr"])
    (found,) = trainer(XentCallback(["cross_entropy"], nan_policy="omit")).validate(
        bigrams(validation_step=step), loader(), verbose=False
    )
    assert math.isfinite(found["val/cross_entropy"])


def test_other_stages_are_not_evaluated():
    assert trainer(XentCallback(METRICS, stages=["test"])).validate(bigrams(), loader(), verbose=False) == [{}]
    run = trainer(XentCallback(METRICS, stages=["train"], prog_bar=False, logger=False), max_epochs=1)
    run.fit(bigrams(), loader(), loader())
    assert set(run.callback_metrics) == set(expected(Sequences(1), stage="train"))
    assert run.logged_metrics == {}
    assert run.progress_bar_metrics == {}


class Doubled(RatioMetric):
    """Twice the loss, under the names of cross entropy's sums."""

    name = "doubled"
    formula = "Σ 2 nll / tokens"
    value_unit = "nats"

    def sum_names(self):
        return "nats", "tokens"

    def per_token(self, scores):
        return 2 * scores.nll


class DoublesTheLoss:
    """A plugin that registers it."""

    @hookimpl
    def register_metrics(self, register):
        register(Doubled)


@pytest.mark.parametrize("names", [["cross_entropy", "doubled"], ["doubled", "cross_entropy"]])
def test_metrics_of_equal_sum_names_keep_their_own_values(install, names):
    install(DoublesTheLoss())
    (found,) = trainer(XentCallback(names)).validate(bigrams(), loader(), verbose=False)
    want = expected(Sequences(10), ["cross_entropy"])
    for suffix in ("", "_stderr"):
        assert found[f"val/cross_entropy{suffix}"] == want[f"val/cross_entropy{suffix}"].item()
        assert found[f"val/doubled{suffix}"] == pytest.approx(2 * want[f"val/cross_entropy{suffix}"].item(), rel=1e-12)
