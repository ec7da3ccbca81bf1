"""Commands that plugins add: found when they are asked for, apart from each other's failures."""

import os
import subprocess
import sys

import pytest
import torch
import typer
from support.cli import xent
from typer.testing import CliRunner

from xent_metrics.cli.app import app
from xent_metrics.errors import PluginError
from xent_metrics.hookspecs import hookimpl


def plugin(*names, error=None, callback=False):
    """A plugin with commands of these names, each of which prints its plugin's place and its own name."""

    class Module:
        @hookimpl
        def register_commands(self, app):
            for name in names:
                app.command(name)(lambda name=name: print(id(self), name))
            if callback:
                app.callback()(lambda: None)
            if error is not None:
                raise error

    return Module()


def failed(*arguments):
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
    assert result.exit_code != 0
    return result


def test_a_plugins_command_runs_and_has_help(install):
    module = plugin("one", "two")
    install(plugin("other"), module)
    assert xent("two") == f"{id(module)} two\n"
    assert "Usage: root two" in xent("two", "--help")


def test_groups_of_commands_may_be_added(install):
    class Module:
        @hookimpl
        def register_commands(self, app):
            group = typer.Typer()
            group.command("a")(lambda: print("a"))
            group.command("b")(lambda: print("b"))
            app.add_typer(group, name="letters")

    install(Module())
    assert xent("letters", "b") == "b\n"


def test_a_built_in_command_asks_no_plugin(install):
    install(plugin("one", error=AssertionError("asked")))
    assert "task_configs" in xent("tasks", "--path")


def test_a_plugin_that_raises_is_named_and_the_others_commands_work(install):
    install(plugin("lost", error=ValueError("no such table")), plugin("good"))
    assert xent("good").endswith("good\n")
    result = failed("lost")
    assert result.exit_code == 2
    assert (
        "PluginError: backend1 (a-third-party 1.0) failed in register_commands: ValueError: no such table"
        in result.stderr
    )
    assert "No such command 'lost'" in result.stderr


def test_a_command_that_typer_cannot_build_is_its_plugins_error(install):
    class Module:
        @hookimpl
        def register_commands(self, app):
            @app.command()
            def strange(value: int | str):
                """Take what typer can't parse."""

    install(Module(), plugin("good"))
    assert xent("good").endswith("good\n")
    assert "failed in register_commands: AssertionError: Typer currently doesn't support Union types" in failed(
        "strange"
    ).stderr.replace("Currently", "currently")


def test_a_callback_would_be_lost(install):
    install(plugin("one", "two", callback=True))
    assert "backend1 (a-third-party 1.0) adds a callback to `xent`; expected commands" in failed("one").stderr


def test_a_typo_gets_the_nearest_command_of_a_plugin(install):
    install(plugin("nearest-tokens"))
    assert "No such command 'nearest-token'. Did you mean 'nearest-tokens'?" in failed("nearest-token").stderr


def test_a_built_in_command_cannot_be_replaced(install):
    install(plugin("tasks", "mine"))
    assert "task_configs" in xent("tasks", "--path")
    assert xent("mine").endswith("mine\n")
    assert "registers the command 'tasks', which xent-metrics itself has" in xent("plugins")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_command_of_two_plugins_is_neithers(install, order):
    modules = [plugin("same", "first"), plugin("same", "second")]
    install(*(modules[place] for place in order))
    result = failed("same")
    assert isinstance(result.exception, PluginError)
    assert str(result.exception) == (
        "two plugins register the command 'same': backend1 (a-third-party 1.0) and backend2 (a-third-party 1.0). "
        "Uninstall or rename one [E010]"
    )
    assert xent("first").endswith("first\n")
    assert xent("second").endswith("second\n")


def test_a_third_plugin_of_the_name_is_named_too(install):
    install(plugin("same"), plugin("same"), plugin("same"))
    assert isinstance(failed("same").exception, PluginError)
    assert xent("plugins").count("register the command 'same'") == 3


def test_the_example_plugin_adds_nearest_tokens(tmp_path):
    """As installed: `xent nearest-tokens` of xent-metrics-emd, and its error as ours."""
    torch.save(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]), tmp_path / "embeddings.pt")
    command = [sys.executable, "-m", "xent_metrics.cli", "nearest-tokens", tmp_path / "embeddings.pt", "--id"]
    environment = os.environ | {"XENT_METRICS_PLUGINS": "emd"}
    done = subprocess.run([*command, "0"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()] == [["1.0000", "1"], ["2.0000", "2"]]
    done = subprocess.run([*command, "3"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr == "InvalidInputError: expected a token id from 0 to 2; got 3 [E001]\n"
