"""The commands that plugins add to `xent` with the hook `register_commands`.

They are asked for when a command isn't built in, and by `xent plugins`. A plugin that fails costs only its own commands. A
name that a built-in command or another plugin has is an error that names both.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from xent_metrics.cli.output import print_error, print_note
from xent_metrics.errors import PluginError, XentMetricsError

if TYPE_CHECKING:
    from xent_metrics.plugins import Plugin, Plugins

__all__ = ["PluginCommands", "XentGroup", "loaded_plugins", "plugin_commands", "print_set_aside"]


class XentGroup(TyperGroup):
    """`xent` itself: loads the plugins and asks them for a command that isn't built in."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, built in or a plugin's."""
        if cmd_name not in self.commands:
            try:
                self._add_plugin_commands(cmd_name, quiet=ctx.resilient_parsing)
            except XentMetricsError:
                if not ctx.resilient_parsing:  # a shell that completes a line has no place for errors
                    raise
        return super().get_command(ctx, cmd_name)

    def _add_plugin_commands(self, wanted: str, *, quiet: bool) -> None:
        loaded = loaded_plugins()
        found = plugin_commands(loaded, self.commands)
        for each in found:
            if wanted in each.contested:
                raise each.contested[wanted]
            self.commands.update(each.commands)
        if wanted not in self.commands and not quiet:
            for error in (each.error for each in found if each.error):
                print_error(error)
            print_set_aside(loaded)


@dataclass
class PluginCommands:
    """What one plugin registered.

    Args:
        plugin: the plugin.
        commands: its commands, ready for use, by name.
        contested: names that it can't have, each with the error that says why.
        error: why it has no commands at all, if it failed.
    """

    plugin: Plugin
    commands: dict[str, Any] = field(default_factory=dict)
    contested: dict[str, PluginError] = field(default_factory=dict)
    error: PluginError | None = None

    @property
    def errors(self) -> list[PluginError]:
        """All that went wrong."""
        return [*([self.error] if self.error else []), *self.contested.values()]


def plugin_commands(loaded: Plugins, built_in: Collection[str]) -> list[PluginCommands]:
    """Ask every loaded plugin for its commands.

    Args:
        loaded: the plugins.
        built_in: names that are taken.

    Returns:
        One record for each plugin that implements `register_commands`, in the order of loading.
    """
    found = [_ask(loaded, plugin) for plugin in loaded.plugins if "register_commands" in plugin.hooks]
    for place, each in enumerate(found):
        for name in [*each.commands]:
            if name in built_in:
                each.contested[name] = PluginError(
                    f"{each.plugin} registers the command {name!r}, which xent-metrics itself has. Rename the plugin's"
                )
            for other in found[place + 1 :]:
                if name in other.commands:
                    each.contested[name] = other.contested[name] = PluginError(
                        f"two plugins register the command {name!r}: {each.plugin} and {other.plugin}. Uninstall or rename one"
                    )
    for each in found:
        each.commands = {name: command for name, command in each.commands.items() if name not in each.contested}
    return found


def _ask(loaded: Plugins, plugin: Plugin) -> PluginCommands:
    """Call `register_commands` of one plugin alone, so that what it adds is known to be its own."""
    app = typer.Typer()
    module = loaded.manager.get_plugin(f"{plugin.name} of {plugin.distribution}")
    others = set(loaded.manager.get_plugins()) - {module}
    try:
        loaded.manager.subset_hook_caller("register_commands", others)(app=app)
        commands = typer.main.get_group(app).commands
    except (Exception, SystemExit) as error:  # whatever a third party's module does, the others must work
        failed = PluginError(f"{plugin} failed in register_commands: {type(error).__name__}: {error}")
        failed.__cause__ = error
        return PluginCommands(plugin, error=failed)
    if app.registered_callback:
        return PluginCommands(
            plugin, error=PluginError(f"{plugin} adds a callback to `xent`; expected commands, such as @app.command()")
        )
    return PluginCommands(plugin, dict(commands))


def loaded_plugins() -> Plugins:
    """The loaded plugins. Warnings about those set aside are suppressed, because the commands show them."""
    from xent_metrics.plugins import plugins

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plugins()


def print_set_aside(loaded: Plugins) -> None:
    """Print the names of the plugins that could not be loaded, if there are any, on stderr."""
    broken = [str(plugin) for plugin in loaded.plugins if plugin.error is not None]
    if broken:
        print_note(f"Set aside: {', '.join(broken)}; see `xent plugins`.")
