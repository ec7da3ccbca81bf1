"""`hooks()` calls the plugins in use, and each hook asks as many of them as its specification says."""

from __future__ import annotations

import pytest

from xent_metrics import hookspecs
from xent_metrics.hookspecs import hookimpl, hooks
from xent_metrics.plugins import plugins


class Answers:
    """A plugin that says its own name to every hook that asks for one."""

    def __init__(self, name):
        self.name = name

    @hookimpl
    def score_backend(self, target):
        return self.name

    @hookimpl
    def linear_cross_entropy_backend(self, target):
        return self.name

    @hookimpl
    def exact_sums_backend(self, values):
        return self.name

    @hookimpl
    def forward_context(self, model):
        return self.name

    @hookimpl
    def register_commands(self, app):
        app.append(self.name)
        return self.name


CALLS = {
    "score_backend": {"logits": None, "target": None, "extra_scores": None},
    "linear_cross_entropy_backend": {"hidden_states": None, "head": None, "target": None, "extra_scores": None},
    "exact_sums_backend": {"values": None, "bins": None, "num_bins": 1},
    "forward_context": {"model": None},
}


@pytest.mark.parametrize("hook", CALLS)
def test_of_a_hook_for_one_result_the_first_is_taken(hook, install):
    install(Answers("one"), Answers("two"))
    assert getattr(hooks(), hook)(**CALLS[hook]) == "two"  # the last loaded is asked first
    install()
    assert getattr(hooks(), hook)(**CALLS[hook]) is None


def test_every_plugin_may_register(install):
    install(Answers("one"), Answers("two"))
    app = []
    hooks().register_commands(app=app)
    assert sorted(app) == ["one", "two"]


def test_the_package_sets_where_its_hooks_come_from(monkeypatch):
    assert hooks() is plugins().manager.hook
    monkeypatch.setattr(hookspecs, "_source", hookspecs._source)  # put back afterwards
    hookspecs.set_hooks(lambda: "others")
    assert hooks() == "others"
