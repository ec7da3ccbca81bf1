"""Plugins: loaded through pluggy, validated, isolated, named in every error; and the real, installed example."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from types import ModuleType, SimpleNamespace

import pytest
import torch

from xent_metrics import TOKENS, CrossEntropy, RatioMetric, TokenMetric, get_metric, hookimpl, list_metrics, plugins
from xent_metrics.errors import MetricOptionError, PluginError, UnknownMetricError
from xent_metrics.hookspecs import HOOK_VERSION
from xent_metrics.plugins import Plugins, provenance, use_plugins
from xent_metrics.version import __version__


class Point:
    """An installed entry point: what `importlib.metadata` would give."""

    def __init__(self, name, module, distribution="third-party", version="1.2"):
        self.name, self.module = name, module
        self.dist = SimpleNamespace(name=distribution, version=version)

    def load(self):
        if isinstance(self.module, BaseException):
            raise self.module
        return self.module


def metric_named(metric_name, base=RatioMetric):
    return type("Made", (base,), {"name": metric_name, "per_token": lambda self, scores: scores.nll})


def module_with(**hooks):
    """A plugin's module with these hook implementations."""
    module = ModuleType("plugin")
    for name, function in hooks.items():
        setattr(module, name, hookimpl(function))
    return module


def registering(*metrics):
    def register_metrics(register):
        for metric in metrics:
            register(metric)

    return module_with(register_metrics=register_metrics)


def load(*points):
    """The plugins of these entry points, and the warnings that they gave."""
    with pytest.warns(UserWarning, match="is set aside") as warnings:
        loaded = Plugins(points)
    return loaded, [str(w.message) for w in warnings]


def test_built_ins_come_through_the_same_hook():
    built_in = Plugins().plugins
    assert [(plugin.name, plugin.distribution) for plugin in built_in] == [("built-in", "xent-metrics")]
    assert Plugins().metrics["cross_entropy"] is CrossEntropy


def test_provenance_names_the_plugins_that_were_loaded():
    with pytest.warns(UserWarning, match="set aside"):
        loaded = Plugins([Point("mine", registering(metric_named("one"))), Point("broken", registering(None))])
    with use_plugins(loaded):
        assert provenance() == {
            "version": __version__,
            "plugins": [{"name": "mine", "distribution": "third-party", "version": "1.2"}],
        }


def test_a_plugins_metrics_and_task_folders_are_there(tmp_path):
    def register_task_configs(register):
        register(tmp_path)
        register(str(tmp_path))

    module = registering(metric_named("one"), metric_named("two"))
    module.register_task_configs = hookimpl(register_task_configs)
    loaded = Plugins([Point("mine", module)])
    plugin = loaded.plugins[-1]
    assert str(plugin) == "mine (third-party 1.2)"
    assert (list(plugin.metrics), plugin.task_configs, plugin.error) == (["one", "two"], [tmp_path, tmp_path], None)
    assert loaded.metric_class("two").name == "two"
    assert "cross_entropy" in loaded.metrics


def test_each_hook_is_called_for_its_own_plugin_only():
    points = [Point(f"p{i}", registering(metric_named(f"metric_{i}"))) for i in range(4)]
    loaded = Plugins(points)
    assert [list(plugin.metrics) for plugin in loaded.plugins[1:]] == [[f"metric_{i}"] for i in range(4)]


def test_a_plugin_that_fails_to_import_is_set_aside_and_the_others_work():
    broken = Point("broken", ImportError("No module named 'left_pad'"), "broken-dist", "0.3")
    loaded, warnings = load(broken, Point("mine", registering(metric_named("one"))))
    assert warnings == [
        "xent-metrics plugin broken (broken-dist 0.3) is set aside: ImportError: No module named 'left_pad'"
    ]
    assert loaded.metric_class("one").name == "one"
    message = r"unknown metric 'their_metric'\. Set aside: broken \(broken-dist 0\.3\): ImportError: No module named 'left_pad'"
    with pytest.raises(UnknownMetricError, match=message) as error:
        loaded.metric_class("their_metric")
    assert error.value.__cause__ is broken.module


@pytest.mark.parametrize(
    "error", [SyntaxError("bad"), ZeroDivisionError("module level"), AttributeError("no such thing"), SystemExit(3)]
)
def test_whatever_an_import_raises(error):
    loaded, _ = load(Point("broken", error))
    assert loaded.plugins[-1].error is error
    assert "cross_entropy" in loaded.metrics


def test_a_plugin_that_exits_in_a_hook_is_set_aside_and_an_interrupt_is_not_caught():
    loaded, warnings = load(Point("mine", module_with(register_metrics=lambda register: sys.exit("no licence"))))
    assert warnings[0].endswith("is set aside: SystemExit: no licence")
    assert "cross_entropy" in loaded.metrics
    with pytest.raises(KeyboardInterrupt):
        Plugins([Point("mine", KeyboardInterrupt())])


def test_the_hooks_that_a_plugin_implements_are_known():
    def score_backend(logits, target):
        return None

    module = module_with(score_backend=score_backend)
    loaded = Plugins([Point("native", module), Point("mine", registering(metric_named("one")))])
    assert [plugin.hooks for plugin in loaded.plugins] == [
        ["register_metrics"],
        ["register_metrics"],
        ["score_backend"],
    ]


def test_a_duplicate_name_names_both_distributions():
    first = Point("a", registering(metric_named("same"), metric_named("other")), "dist-a", "1")
    second = Point("b", registering(metric_named("only_b"), metric_named("same")), "dist-b", "2")
    loaded, _ = load(second, first)  # whatever the order they are found in
    message = r"two plugins register the metric 'same': a \(dist-a 1\) and b \(dist-b 2\)\. Uninstall or rename one"
    with pytest.raises(PluginError, match=message):
        loaded.metric_class("same")
    assert loaded.metric_class("other").name == "other"
    assert "same" not in loaded.metrics
    assert not any("same" in plugin.metrics for plugin in loaded.plugins)
    with pytest.raises(UnknownMetricError, match=r"Set aside: b \(dist-b 2\): PluginError: two plugins"):
        loaded.metric_class("only_b")


def test_a_built_ins_name_stays_the_built_ins():
    loaded, warnings = load(Point("a", registering(metric_named("perplexity")), "dist-a", "1"))
    assert "'perplexity': built-in (xent-metrics" in warnings[0]
    assert "and a (dist-a 1)" in warnings[0]
    assert loaded.metric_class("perplexity").__module__.startswith("xent_metrics.")


def test_one_plugin_that_registers_a_name_twice():
    _, warnings = load(Point("a", registering(metric_named("same"), metric_named("same")), "dist-a", "1"))
    assert "two plugins register the metric 'same': a (dist-a 1) and a (dist-a 1)" in warnings[0]


def test_one_module_under_two_names_stays_under_the_first():
    module = registering(metric_named("one"))
    loaded, warnings = load(Point("a", module), Point("b", module))
    assert re.search(r"plugin b \(third-party 1\.2\) is set aside: ValueError: Plugin already registered", warnings[0])
    assert loaded.metric_class("one").name == "one"
    assert loaded.manager.is_registered(module)


def test_a_plugin_whose_hooks_are_not_marked_is_told_so():
    module = ModuleType("their_plugin")
    module.register_metrics = lambda register: register(metric_named("one"))  # no @hookimpl
    loaded, warnings = load(Point("mine", module), Point("empty", ModuleType("empty_plugin")))
    assert "empty (third-party 1.2) has no hooks: no function of empty_plugin is marked with @hookimpl" in warnings[0]
    assert (
        "mine (third-party 1.2) has no hooks: its function register_metrics isn't marked with @hookimpl." in warnings[1]
    )
    assert "Write `from xent_metrics import hookimpl` and @hookimpl above `def register_metrics`" in warnings[1]
    with pytest.raises(UnknownMetricError, match=r"Set aside: .*mine .*has no hooks"):
        loaded.metric_class("one")


class TestTheVersionOfTheHooks:
    def made_for(self, version):
        module = registering(metric_named(f"for_{version}".replace(".", "_")))
        module.XENT_METRICS_HOOKS = version
        return Point(f"for-{version}", module)

    @pytest.mark.parametrize("version", [HOOK_VERSION + 1, HOOK_VERSION - 1, "1", None])
    def test_a_plugin_made_for_another_is_set_aside_by_name(self, version):
        loaded, [warning] = load(self.made_for(version), Point("other", registering(metric_named("fine"))))
        assert (
            f"for-{version} (third-party 1.2) is made for version {version!r} of the hooks; xent-metrics {__version__} has "
            f"version {HOOK_VERSION}. Install a version of third-party for these hooks, or another xent-metrics"
        ) in warning
        assert loaded.plugins[1].hooks == []
        assert loaded.metric_class("fine").name == "fine"

    def test_a_plugin_made_for_this_one_or_from_before_versions_loads(self):
        loaded = Plugins([self.made_for(HOOK_VERSION), Point("silent", registering(metric_named("one")))])
        assert [plugin.error for plugin in loaded.plugins] == [None] * 3
        assert HOOK_VERSION == 1  # from 2 on, a plugin that says nothing is set aside: say so in the changes

    def test_it_comes_before_what_another_version_would_break(self):
        """A hook that isn't there any more would be another error, and say less."""
        module = module_with(hook_of_the_future=lambda: None)
        module.XENT_METRICS_HOOKS = 2
        _, [warning] = load(Point("new", module))
        assert "is made for version 2 of the hooks" in warning


class Abstract(TokenMetric):
    name = "abstract"

    def sums(self, scores):
        return {}


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            module_with(register_metrics=lambda registry: None),
            r"PluginValidationError: Plugin 'mine of third-party' for hook 'register_metrics'.*registry",
        ),
        (module_with(register_metric=lambda register: None), "PluginValidationError: unknown hook 'register_metric'"),
        (
            registering(torch.nn.Linear),
            r"registers <class .*Linear'>; expected a subclass of xent_metrics\.TokenMetric",
        ),
        (registering("perplexity"), r"registers 'perplexity'; expected a subclass"),
        (registering(CrossEntropy()), r"registers CrossEntropy\(.*\); expected a subclass"),
        (registering(Abstract), "registers Abstract, which doesn't define value"),
        (
            registering(type("Nameless", (RatioMetric,), {"per_token": None})),
            "registers Nameless under None; `name` is a snake",
        ),
        (registering(metric_named("not a name")), "registers Made under 'not a name'"),
        (
            module_with(register_task_configs=lambda register: register("/no/such")),
            "the task folder /no/such, which is not a f",
        ),
        (module_with(register_metrics=lambda register: 1 / 0), "ZeroDivisionError: division by zero"),
    ],
    ids=["signature", "hook's name", "class", "string", "instance", "abstract", "nameless", "name", "folder", "raises"],
)
def test_what_cannot_be_registered_sets_the_plugin_aside(module, message):
    loaded, warnings = load(Point("mine", module), Point("other", registering(metric_named("fine"))))
    assert warnings[0].startswith("xent-metrics plugin mine (third-party 1.2) is set aside: ")
    assert re.search(message, warnings[0], re.DOTALL)
    assert loaded.plugins[1].error is not None
    assert not loaded.plugins[1].metrics
    assert loaded.metric_class("fine").name == "fine"
    assert not loaded.manager.is_registered(module)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ppl", r"unknown metric 'ppl'\. Did you mean 'perplexity'\?"),
        ("BPB", "Did you mean 'bits_per_byte'"),
        ("cross_entropie", "Did you mean 'cross_entropy'"),
        ("ece", "Did you mean 'expected_calibration_error'"),
        ("zzz", r"unknown metric 'zzz'\. `xent metrics` lists all [34]\d; plugins loaded: built-in"),
    ],
)
def test_an_unknown_metric_suggests_the_nearest_and_lists_what_loaded(name, message):
    with pytest.raises(UnknownMetricError, match=message):
        Plugins().metric_class(name)
    with pytest.raises(UnknownMetricError, match=message):
        get_metric(name)


@pytest.mark.parametrize("name", [None, CrossEntropy, 3])
def test_a_name_is_a_string(name):
    with pytest.raises(UnknownMetricError, match="expected a registered name, such as 'cross_entropy'; got "):
        get_metric(name)


def test_options_are_checked_by_name():
    with pytest.raises(
        MetricOptionError, match=r"no option 'bins'\. Did you mean 'num_bins'\? Its options: num_bins, "
    ):
        get_metric("expected_calibration_error", bins=3)
    assert get_metric("expected_calibration_error", num_bins=3, sync_on_compute=False).num_bins == 3


def run_with(selection):
    code = "import xent_metrics as x; print(*x.list_metrics()); print(*x.plugins.plugins().plugins)"
    environment = {**os.environ, "XENT_METRICS_PLUGINS": selection}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


class TestSelection:
    """XENT_METRICS_PLUGINS, by a fresh load each; the real variable in one fresh process."""

    @pytest.fixture
    def select(self, monkeypatch):
        points = [Point("a", registering(metric_named("one"))), Point("b", registering(metric_named("two")))]
        monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == "xent_metrics" else [])

        def load(selection):
            if selection is None:
                monkeypatch.delenv("XENT_METRICS_PLUGINS", raising=False)
            else:
                monkeypatch.setenv("XENT_METRICS_PLUGINS", selection)
            return [plugin.name for plugin in plugins._installed.__wrapped__().plugins]

        return load

    @pytest.mark.parametrize(
        ("selection", "names"),
        [(None, ["a", "b"]), ("", []), (" , ", []), ("b", ["b"]), (" b ,a", ["a", "b"])],
    )
    def test_names_load_a_subset_and_nothing_loads_none(self, select, selection, names):
        assert select(selection) == ["built-in", *names]

    def test_a_name_that_is_not_installed_is_an_error(self, select):
        with pytest.raises(PluginError, match="XENT_METRICS_PLUGINS names c, d, not installed; installed: a, b"):
            select("d,a,c")

    def test_a_fresh_process_with_none(self):
        run = run_with("")
        names, loaded = run.stdout.splitlines()
        assert "cross_entropy" in names.split()
        assert "focal_cross_entropy" not in names.split()
        assert loaded.startswith("built-in (xent-metrics ")
        assert "focal" not in loaded


class TestTheInstalledFocalPlugin:
    def test_its_entry_point_is_found(self):
        (point,) = entry_points(group="xent_metrics", name="focal")
        assert (point.value, point.dist.name) == ("xent_metrics_focal", "xent-metrics-focal")
        assert "focal_cross_entropy" in list_metrics()

    @pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
    def test_it_is_its_formula(self, gamma, batch):
        metric = get_metric("focal_cross_entropy", gamma=gamma)
        metric.update(*batch)
        counted = batch[1] != -100
        p = batch[0].double().softmax(-1)[counted].gather(-1, batch[1][counted][:, None])
        torch.testing.assert_close(metric.compute(), (-((1 - p) ** gamma) * p.log()).mean(), rtol=1e-6, atol=0)

    def test_its_options_are_checked_and_in_its_sums(self):
        with pytest.raises(MetricOptionError, match=r"focal_cross_entropy has no option 'gama'\. Did you mean 'gamma'"):
            get_metric("focal_cross_entropy", gama=2.0)
        one, other = get_metric("focal_cross_entropy", gamma=1.0), get_metric("focal_cross_entropy", gamma=2.0)
        assert one.state_name != other.state_name
        assert one.sum_names()[0] != other.sum_names()[0]
        assert one.sum_names()[1] is other.sum_names()[1] is TOKENS
