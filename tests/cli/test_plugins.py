"""`xent plugins`: what each plugin adds, and what went wrong."""

import json
from importlib.metadata import EntryPoint

import pytest
from support.cli import fits, xent

import xent_metrics
from xent_metrics import list_metrics, plugins
from xent_metrics.hookspecs import hookimpl
from xent_metrics.task_folders import task_configs_folder

BUILT_IN = [
    "compare",
    "compare-models",
    "doctor",
    "explain",
    "intervals",
    "lm-eval",
    "metrics",
    "new-plugin",
    "plot",
    "plugins",
    "report",
    "rescore",
    "series",
    "tasks",
    "view",
]


@pytest.fixture
def broken():
    """The built-ins and a plugin that can't be imported."""
    with pytest.warns(UserWarning, match="set aside"):
        loaded = plugins.Plugins([EntryPoint("broken", "no_such_module_anywhere", plugins.GROUP)])
    with plugins.use_plugins(loaded):
        yield


def test_a_plugin_that_is_set_aside_is_listed_with_its_error(broken):
    found = {each["name"]: each for each in json.loads(xent("plugins", "--json"))}
    assert found["built-in"]["error"] is None
    assert found["built-in"]["version"] == xent_metrics.__version__
    assert "cross_entropy" in found["built-in"]["metrics"]
    assert found["built-in"]["hooks"] == ["register_metrics"]
    assert found["built-in"]["commands"] == BUILT_IN
    assert found["built-in"]["task_configs"] == [str(task_configs_folder())]
    assert found["broken"]["error"] == "ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    table = xent("plugins")
    assert "set aside     ModuleNotFoundError" in table or "set aside  ModuleNotFoundError" in table


class Commands:
    @hookimpl
    def register_commands(self, app):
        @app.command()
        def measure_everything():
            """Measure everything."""

        @app.command()
        def metrics():
            """Take the place of a built-in command."""


def test_commands_are_listed_with_the_plugin_that_adds_them(install):
    install(Commands())
    [_, found] = json.loads(xent("plugins", "--json"))
    assert found["commands"] == ["measure-everything"]
    [error] = found["command_errors"]
    assert "backend1 (a-third-party 1.0) registers the command 'metrics', which xent-metrics itself has" in error
    table = xent("plugins")
    assert "measure-everything" in table
    assert error in table


@pytest.mark.parametrize("width", [60, 80, 120])
def test_names_stay_whole_in_a_narrow_terminal(width, install):
    install(Commands())
    table = xent("plugins", width=width)
    assert fits(table, width)
    for name in [*list_metrics(), *BUILT_IN, "measure-everything", "register_commands", "a-third-party"]:
        assert name in table
