"""XentCallback in real Trainers of both packages: names, values, errors, stages, step outputs, precision, resume, YAML."""

import csv
import importlib
import math

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from support.lightning import PACKAGES, QUIET, Sequences, T, V, bigrams, loader, table
from torch.nn import functional as F

from xent_metrics import TokenMetricCollection, get_metric, score_tokens
from xent_metrics.analysis import StandardError
from xent_metrics.errors import InvalidInputError, InvalidTargetError, MetricOptionError, UnknownMetricError
from xent_metrics.hosts.lightning import XentCallback

BYTES = torch.arange(V) % 4
METRICS = ["cross_entropy", "perplexity", {"metric": "bits_per_byte", "token_bytes": BYTES}, "token_accuracy"]


def trainer(*callbacks, package="lightning.pytorch", **options):
    return importlib.import_module(package).Trainer(
        accelerator="cpu", callbacks=list(callbacks), **{**QUIET, **options}
    )


def nats_and_tokens(data):
    """Of each sequence, by torch's own cross entropy."""
    logits = table()[data.ids[:, :-1]]
    nats = F.cross_entropy(logits.mT.double(), data.target, reduction="none", ignore_index=-100)
    return nats.sum(1).numpy(), (data.target != -100).sum(1).numpy()


def expected(data, metrics=METRICS, stage="val"):
    """The same metrics by hand over all of the data at once."""
    scores = score_tokens(table()[data.ids[:, :-1]], data.target)
    return _values(metrics, [scores], stage)


def _values(metrics, scores, stage="val"):
    entries = [{"metric": entry} if isinstance(entry, str) else dict(entry) for entry in metrics]
    built = {entry["metric"]: get_metric(entry.pop("metric"), **entry) for entry in [dict(e) for e in entries]}
    built |= {f"{name}_stderr": StandardError(metric) for name, metric in built.items()}
    collection = TokenMetricCollection(built, prefix=f"{stage}/")
    for part in scores:
        collection.update(part)
    return collection.compute()


@pytest.mark.parametrize("package", PACKAGES)
def test_fit_logs_shows_and_monitors_values_with_errors(package, tmp_path):
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
    assert {name: run.progress_bar_metrics[name] for name in want} == {
        name: value.item() for name, value in want.items()
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


def give_scores(self, batch, batch_idx):
    return score_tokens(self(batch["ids"]), batch["targets"])


def give_scores_by_name(self, batch, batch_idx):
    return {"scores": score_tokens(self(batch["ids"]), batch["targets"])}


def give_unshifted(self, batch, batch_idx):
    ids = torch.cat([batch["ids"], batch["ids"][:, :1]], dim=1)
    labels = torch.cat([batch["ids"][:, :1], batch["targets"]], dim=1)
    return {"logits": self(ids), "labels": labels}


def give_nothing(self, batch, batch_idx):
    return None


def adapt(module, output, batch):
    return {"logits": module(batch["ids"]), "targets": batch["targets"]}


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (give_scores, {}),
        (give_scores_by_name, {}),
        (give_unshifted, {"shift": True}),
        (give_nothing, {"adapter": adapt}),
        (give_nothing, {"adapter": f"{__name__}:adapt"}),
    ],
)
def test_every_form_of_a_steps_output_gives_the_same(step, options):
    (found,) = trainer(XentCallback(METRICS, **options)).validate(
        bigrams(validation_step=step), loader(), verbose=False
    )
    assert found == {name: value.item() for name, value in expected(Sequences(10)).items()}


def test_a_training_step_may_give_scores():
    def step(self, batch, batch_idx):
        scores = score_tokens(self(batch["ids"]), batch["targets"])
        return {"loss": self(batch["ids"]).sum(), "scores": scores}

    run = trainer(XentCallback(METRICS, stages=["train"]), max_epochs=1)
    run.fit(bigrams(training_step=step), loader())
    assert run.callback_metrics["train/perplexity"] == expected(Sequences(10), stage="train")["train/perplexity"]


def test_a_training_step_that_was_skipped_does_not_count():
    def step(self, batch, batch_idx):
        return given(self, batch, batch_idx) if batch_idx != 1 else None

    module = bigrams(training_step=step)
    given = bigrams().__class__.training_step
    run = trainer(XentCallback(METRICS, stages=["train"]), max_epochs=1)
    run.fit(module, loader())
    data = Sequences(10)
    data.target[3:6] = -100
    assert run.callback_metrics["train/perplexity_stderr"] == expected(data, stage="train")["train/perplexity_stderr"]


def test_weights_count_by_sequence_and_by_token():
    def by_sequence(self, batch, batch_idx):
        return {"logits": self(batch["ids"]), "targets": batch["targets"], "weight": batch["ids"][:, 0] * 1.0}

    def by_token(self, batch, batch_idx):
        return by_sequence(self, batch, batch_idx) | {"weight": batch["ids"][:, :1].expand(-1, T) * 1.0}

    found = [
        trainer(XentCallback(METRICS)).validate(bigrams(validation_step=step), loader(), verbose=False)[0]
        for step in (by_sequence, by_token)
    ]
    y, x = nats_and_tokens(Sequences(10))
    weight = Sequences(10).ids[:, 0].numpy()
    assert found[0] == found[1]
    assert found[0]["val/cross_entropy"] == pytest.approx((weight * y).sum() / (weight * x).sum(), rel=1e-6)


def test_several_loaders_have_values_each():
    run = trainer(XentCallback(METRICS))
    run.validate(bigrams(), [loader(), loader(4, seed=8)], verbose=False)
    for index, data in enumerate((Sequences(10), Sequences(4, seed=8))):
        want = {f"{name}/dataloader_idx_{index}": value for name, value in expected(data).items()}
        assert {name: run.callback_metrics[name] for name in want} == want


def test_sanity_checking_leaves_nothing_behind():
    run = trainer(XentCallback(["cross_entropy"]), max_epochs=1, num_sanity_val_steps=1)
    run.fit(bigrams(), loader(), loader(5, seed=2))
    assert run.callback_metrics["val/cross_entropy"] == expected(Sequences(5, seed=2))["val/cross_entropy"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "16-mixed"])
def test_sums_are_unharmed_by_precision_plugins(precision):
    """Whatever the plugin does to modules and tensors, the values are those of the very logits that the steps gave."""
    seen = []

    def step(self, batch, batch_idx):
        hidden = F.one_hot(batch["ids"], V).to(self.table.weight.dtype)
        logits = F.linear(hidden, self.table.weight.T)  # what autocast casts
        seen.append(score_tokens(logits, batch["targets"]))
        return {"logits": logits, "targets": batch["targets"]}

    run = trainer(XentCallback(METRICS), precision=precision, max_epochs=1, num_sanity_val_steps=0)
    # Lightning has no fp16 on the CPU: it says so and takes bfloat16.
    assert run.precision == {"16-mixed": "bf16-mixed"}.get(precision, precision)
    run.fit(bigrams(validation_step=step), loader(), loader(200, seed=4))
    want = _values(METRICS, seen)
    assert {name: run.callback_metrics[name] for name in want} == want
    exact = expected(Sequences(200, seed=4))["val/cross_entropy"]
    assert (want["val/cross_entropy"] == exact) == (precision == "32-true")
    assert run.callback_metrics["val/cross_entropy"].item() == pytest.approx(exact.item(), rel=0.01)


def test_an_epoch_goes_on_where_a_checkpoint_was_written(tmp_path):
    class Resumable(torch.utils.data.DataLoader):
        """Goes on with the batch after the last one that was drawn."""

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
    return adapt(module.inner, output, batch)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"metrics": ["cross_entropie"]}, UnknownMetricError, "Did you mean 'cross_entropy'"),
        ({"metrics": [{"metric": "cross_entropy", "units": "bits"}]}, MetricOptionError, "no option 'units'"),
        ({"metrics": []}, MetricOptionError, "metrics is a list"),
        ({"metrics": "cross_entropy"}, MetricOptionError, "metrics is a list"),
        ({"metrics": [{"unit": "bits"}]}, MetricOptionError, "expected a metric's name"),
        ({"metrics": [get_metric("perplexity")]}, MetricOptionError, "Give {'metric': 'perplexity', …} instead"),
        ({"metrics": ["perplexity", "perplexity"]}, MetricOptionError, "stands twice"),
        ({"metrics": ["perplexity"], "stages": ["validation"]}, MetricOptionError, "train, val, test"),
        ({"metrics": ["perplexity"], "adapter": "no.such:thing"}, MetricOptionError, "names no object"),
        ({"metrics": [{"metric": "bits_per_byte", "token_bytes": "no:such"}]}, MetricOptionError, "names no object"),
    ],
)
def test_a_wrong_option_raises_when_the_callback_is_built(arguments, error, message):
    with pytest.raises(error, match=message):
        XentCallback(**arguments)


def test_a_step_without_scores_raises_at_the_first_batch():
    with pytest.raises(InvalidInputError, match=r"the step gave a dict with the keys 'ids', 'targets'.*adapter"):
        trainer(XentCallback(METRICS)).validate(bigrams(validation_step=lambda self, batch, i: batch), loader())
    with pytest.raises(InvalidInputError, match="the step gave NoneType"):
        trainer(XentCallback(METRICS)).validate(bigrams(validation_step=give_nothing), loader())


@pytest.mark.parametrize("loaders", [1, 2])
def test_a_name_that_the_module_logs_itself_raises(loaders):
    def step(self, batch, batch_idx, dataloader_idx=0):
        self.log(name, 1.0)
        return {"logits": self(batch["ids"]), "targets": batch["targets"]}

    given = [loader() for _ in range(loaders)]
    for name in ("val/cross_entropy", "val/loss"):
        run = trainer(XentCallback(["cross_entropy"]))
        if name == "val/loss":
            run.validate(bigrams(validation_step=step), given, verbose=False)
            continue
        with pytest.raises(MetricOptionError, match=r"val/cross_entropy.*: logged by a callback, and by Bigrams or"):
            run.validate(bigrams(validation_step=step), given, verbose=False)


def test_two_callbacks_of_one_name_raise():
    twice = [XentCallback(["cross_entropy"]), XentCallback(["cross_entropy", "perplexity"])]
    with pytest.raises(
        MetricOptionError, match="val/cross_entropy, val/cross_entropy_stderr: logged by a callback, and"
    ):
        trainer(*twice).validate(bigrams(), loader(), verbose=False)


def test_targets_out_of_range_raise_at_the_epochs_end():
    def step(self, batch, batch_idx):
        return {"logits": self(batch["ids"]), "targets": batch["targets"] + V * (batch_idx == 1)}

    with pytest.raises(InvalidTargetError, match="cross_entropy: "):
        trainer(XentCallback(["cross_entropy"])).validate(bigrams(validation_step=step), loader())


def test_nan_logits_are_nan_or_left_out_on_request():
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


def test_a_stage_that_is_not_asked_for_is_left_alone():
    assert trainer(XentCallback(METRICS, stages=["test"])).validate(bigrams(), loader(), verbose=False) == [{}]
    run = trainer(XentCallback(METRICS, stages=["train"], prog_bar=False, logger=False), max_epochs=1)
    run.fit(bigrams(), loader(), loader())
    assert set(run.callback_metrics) == set(expected(Sequences(1), stage="train"))
    assert run.logged_metrics == {}
    assert run.progress_bar_metrics == {}


def test_it_is_a_callback_of_both_packages():
    for package in PACKAGES:
        assert issubclass(XentCallback, importlib.import_module(package).Callback)
    assert Callback in XentCallback.__mro__
    assert EarlyStopping not in XentCallback.__mro__
    assert Trainer(callbacks=XentCallback(METRICS), **QUIET).callbacks  # not in a list: Lightning looks at its class
