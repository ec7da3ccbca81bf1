"""Metric objects that a LightningModule logs itself: alone, in a collection, monitored, in bfloat16, and resumed."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import nn
from torch.nn import functional as F

from xent_metrics import CalibrationWeightedCrossEntropy, CrossEntropy, Perplexity, TokenMetricCollection, get_metric

V, T = 11, 6
NAMES = [
    "cross_entropy", "perplexity", "token_accuracy", "expected_calibration_error", "calibration_weighted_cross_entropy"
]  # fmt: skip


def batches(count, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (count, 3, T + 1), generator=generator)
    target = ids[..., 1:].clone()
    target[..., -1] = -100
    return [(ids[i, :, :-1], target[i]) for i in range(count)]


class Net(pl.LightningModule):
    """Bigrams that keep the logits of validation."""

    def __init__(self, lr=0.5):
        super().__init__()
        self.lr = lr
        self.table = nn.Embedding.from_pretrained(
            torch.randn(V, V, generator=torch.Generator().manual_seed(3)), freeze=False
        )
        self.seen = []

    def forward(self, ids):
        return self.table(ids)

    def training_step(self, batch, batch_idx):
        ids, target = batch
        return F.cross_entropy(self(ids).flatten(0, 1).float(), target.flatten())

    def validation_step(self, batch, batch_idx):
        ids, target = batch
        logits = self(ids)
        self.seen.append((self.current_epoch, logits.clone(), target))
        self.add(logits, target)

    def add(self, logits, target):
        """Update and log the metrics."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=abs(self.lr), maximize=self.lr < 0)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(batches(4, seed=1), batch_size=None)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(batches(3, seed=2), batch_size=None)

    def by_hand(self, name, epoch):
        """The metric over all logits of this epoch's validation, in another order."""
        metric = get_metric(name)
        for _, logits, target in reversed([seen for seen in self.seen if seen[0] == epoch]):
            metric.update(logits, target)
        return metric.compute().item()


class LogsOne(Net):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.val_loss = CrossEntropy()
        self.steps = []

    def add(self, logits, target):
        self.steps.append(self.val_loss(logits, target).item())
        self.log("val/loss", self.val_loss)


class LogsMany(Net):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.val = TokenMetricCollection(NAMES, prefix="val/")

    def add(self, logits, target):
        self.val.update(logits, target)
        self.log_dict(self.val)


class History(Callback):
    """The values that callbacks see in each epoch."""

    def __init__(self):
        self.values = []

    def on_validation_epoch_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.values.append({key: value.item() for key, value in trainer.callback_metrics.items()})


def trainer(tmp_path, callbacks=(), **options):
    defaults = {"max_epochs": 3, "num_sanity_val_steps": 0}
    return pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        default_root_dir=tmp_path, callbacks=list(callbacks), **(defaults | options),
    )  # fmt: skip


def test_self_log_of_a_metric(tmp_path):
    history, net = History(), LogsOne()
    trainer(tmp_path, [history]).fit(net)
    expected = [net.by_hand("cross_entropy", epoch) for epoch in range(3)]
    assert [values["val/loss"] for values in history.values] == expected
    assert len(set(expected)) == 3  # reset between epochs, and the model learns
    assert len(net.steps) == 9
    assert net.steps[0] == pytest.approx(F.cross_entropy(net.seen[0][1].flatten(0, 1), net.seen[0][2].flatten()).item())


def test_log_dict_of_a_collection(tmp_path):
    history, net = History(), LogsMany()
    trainer(tmp_path, [history]).fit(net)
    for epoch, values in enumerate(history.values):
        assert values == {f"val/{name}": net.by_hand(name, epoch) for name in NAMES}
    assert len(history.values) == 3


def test_validate_returns_the_same_bits(tmp_path):
    net = LogsMany()
    [values] = trainer(tmp_path).validate(net, verbose=False)
    assert values == {f"val/{name}": net.by_hand(name, 0) for name in NAMES}


def test_the_logged_value_is_float64(tmp_path):
    net, fit = LogsOne(), trainer(tmp_path)
    fit.fit(net)
    assert fit.callback_metrics["val/loss"].dtype == torch.float64


def test_model_checkpoint_monitors_a_metric(tmp_path):
    history, net = History(), LogsMany(lr=60.0)  # so high a rate that later epochs are worse
    best = ModelCheckpoint(dirpath=tmp_path, monitor="val/perplexity", mode="min", filename="{epoch}")
    trainer(tmp_path, [history, best], max_epochs=4).fit(net)
    perplexities = [values["val/perplexity"] for values in history.values]
    assert best.best_model_score.item() == min(perplexities)
    assert best.best_model_path.endswith(f"epoch={perplexities.index(min(perplexities))}.ckpt")
    loaded = LogsMany.load_from_checkpoint(best.best_model_path, weights_only=True)
    [values] = trainer(tmp_path).validate(loaded, verbose=False)
    assert values["val/perplexity"] == min(perplexities)


def test_early_stopping_monitors_a_metric(tmp_path):
    history, net = History(), LogsMany(lr=-0.5)  # uphill: the first epoch stays the best
    stop = EarlyStopping(monitor="val/calibration_weighted_cross_entropy", mode="min", patience=2)
    fit = trainer(tmp_path, [history, stop], max_epochs=10)
    fit.fit(net)
    assert fit.current_epoch == 3
    assert stop.best_score.item() == history.values[0]["val/calibration_weighted_cross_entropy"]


def test_bf16_true_leaves_the_sums_exact(tmp_path):
    history, net = History(), LogsMany()
    trainer(tmp_path, [history], precision="bf16-true").fit(net)
    assert net.seen[0][1].dtype == torch.bfloat16
    assert {metric.state.dtype for metric in net.val.members().values()} == {torch.int64}
    for epoch, values in enumerate(history.values):
        assert values == {f"val/{name}": net.by_hand(name, epoch) for name in NAMES}


class KeepsCount(Net):
    """Metrics over the whole training, kept in checkpoints."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.train_metrics = TokenMetricCollection(["cross_entropy", "token_accuracy"])
        self.train_metrics.persistent(True)
        self.calibrated = CalibrationWeightedCrossEntropy()
        self.calibrated.persistent(True)

    def training_step(self, batch, batch_idx):
        ids, target = batch
        logits = self(ids)
        self.train_metrics.update(logits, target)
        loss = self.calibrated.loss(logits, target)
        self.calibrated.update(logits, target)
        return loss


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    straight, first, resumed = KeepsCount(), KeepsCount(), KeepsCount()
    trainer(tmp_path, max_epochs=4).fit(straight)
    half = trainer(tmp_path, max_epochs=2)
    half.fit(first)
    half.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path, max_epochs=4).fit(resumed, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert torch.equal(resumed.table.weight, straight.table.weight)
    assert torch.equal(resumed.calibrated.state, straight.calibrated.state)
    assert resumed.train_metrics.compute() == straight.train_metrics.compute()
    assert resumed.calibrated.counts()["counted"] == 4 * 4 * 3 * (T - 1)


def test_without_persistence_a_checkpoint_has_no_sums(tmp_path):
    net, fit = LogsMany(), trainer(tmp_path)
    fit.fit(net)
    fit.save_checkpoint(tmp_path / "plain.ckpt")
    assert set(torch.load(tmp_path / "plain.ckpt", weights_only=True)["state_dict"]) == {"table.weight"}


class TrainsOnValidationCalibration(LogsMany):
    """The weights of the training loss come from validation, which runs in inference mode."""

    def __init__(self):
        super().__init__()
        self.running = CalibrationWeightedCrossEntropy(strength=5.0)
        self.losses = []

    def add(self, logits, target):
        super().add(logits, target)
        self.running.update(logits, target)

    def training_step(self, batch, batch_idx):
        ids, target = batch
        loss = self.running.loss(self(ids), target)
        self.losses.append((loss.item(), F.cross_entropy(self(ids).flatten(0, 1), target.flatten()).item()))
        return loss


def test_a_training_loss_can_be_weighted_by_validation(tmp_path):
    net = TrainsOnValidationCalibration()
    before = net.table.weight.detach().clone()
    trainer(tmp_path, max_epochs=2).fit(net)
    first_epoch, second_epoch = net.losses[:4], net.losses[4:]
    assert all(loss == pytest.approx(plain, rel=1e-6) for loss, plain in first_epoch)  # nothing seen yet
    assert all(loss != pytest.approx(plain, rel=1e-4) for loss, plain in second_epoch)
    assert not torch.equal(net.table.weight, before)


def test_forward_logs_per_step_and_per_epoch(tmp_path):
    class Both(Net):
        def __init__(self):
            super().__init__()
            self.ppl = Perplexity()

        def training_step(self, batch, batch_idx):
            ids, target = batch
            logits = self(ids)
            self.seen.append((self.current_epoch, logits.detach(), target))
            self.ppl(logits, target)
            self.log("train/perplexity", self.ppl, on_step=True, on_epoch=True)
            return F.cross_entropy(logits.flatten(0, 1), target.flatten())

    net, fit = Both(), trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    fit.fit(net)
    last = get_metric("perplexity")
    last.update(*net.seen[-1][1:])
    assert fit.callback_metrics["train/perplexity_epoch"].item() == net.by_hand("perplexity", 0)
    assert fit.callback_metrics["train/perplexity_step"].item() == last.compute().item()
