"""What is read of Lightning's private attributes, in real Trainers of both packages."""

import importlib

import pytest
from support.lightning import PACKAGES, bigrams, loader, trainer

from xent_metrics.hosts.lightning.upstream import active_loaders, logged_names


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(("mode", "shape"), [("sequential", [1, 1]), ("min_size", [2])])
def test_active_loaders_are_listed_by_dataloader_idx(package, mode, shape):
    seen = []

    def step(self, batch, batch_idx, dataloader_idx=0):
        seen.append(active_loaders(self.trainer))

    loaders = [loader(), loader(4)]
    combined = importlib.import_module(f"{package}.utilities").CombinedLoader
    given = loaders if mode == "sequential" else combined(loaders, mode)
    trainer(package=package).validate(bigrams(package, validation_step=step), given, verbose=False)
    for found in seen:
        assert [len(each) for each in found] == shape
        assert [each for group in found for each in group] == loaders


@pytest.mark.parametrize("package", PACKAGES)
def test_logged_names_are_those_of_this_epoch(package):
    before, after = [], []

    def step(self, batch, batch_idx):
        before.append(logged_names(self))
        self.log("loss", 1.0)
        after.append(logged_names(self))

    run = trainer(package=package)
    for _ in range(2):
        run.validate(bigrams(package, validation_step=step), loader(), verbose=False)
    assert before[0] == before[len(before) // 2] == set()
    assert set(map(frozenset, after)) == {frozenset({"loss"})}
