"""What both callbacks share: base classes of both Lightning packages, and names that are logged only once."""

import importlib

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from support.lightning import METRICS, PACKAGES, QUIET, bigrams, loader, trainer

from xent_metrics.errors import MetricOptionError
from xent_metrics.hosts.lightning import XentCallback


def test_it_is_a_callback_of_both_packages():
    for package in PACKAGES:
        assert issubclass(XentCallback, importlib.import_module(package).Callback)
    assert Callback in XentCallback.__mro__
    assert EarlyStopping not in XentCallback.__mro__
    assert Trainer(callbacks=XentCallback(METRICS), **QUIET).callbacks  # not in a list: Lightning looks at its class


@pytest.mark.parametrize("loaders", [1, 2])
def test_a_name_that_the_module_also_logs_raises(loaders):
    def step(self, batch, batch_idx, dataloader_idx=0):
        self.log(name, 1.0)
        return {"logits": self(batch["ids"]), "targets": batch["targets"]}

    given = [loader() for _ in range(loaders)]
    for name in ("val/cross_entropy", "val/loss"):
        run = trainer(XentCallback(["cross_entropy"]))
        if name == "val/loss":
            run.validate(bigrams(validation_step=step), given, verbose=False)
            continue
        with pytest.raises(
            MetricOptionError,
            match=r"val/cross_entropy.*: logged by a callback and, under the same name, by Bigrams or",
        ):
            run.validate(bigrams(validation_step=step), given, verbose=False)


def test_two_callbacks_that_log_one_name_raise():
    twice = [XentCallback(["cross_entropy"]), XentCallback(["cross_entropy", "perplexity"])]
    with pytest.raises(
        MetricOptionError, match="val/cross_entropy, val/cross_entropy_stderr: logged by a callback and"
    ):
        trainer(*twice).validate(bigrams(), loader(), verbose=False)
