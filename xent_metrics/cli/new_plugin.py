"""`xent new-plugin`: writes the package of a plugin that installs, passes its tests and is listed at once.

The files are templates in the folder plugin_files: those in `base`, and those of each kind that is asked for.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from xent_metrics.errors import PluginError
from xent_metrics.hookspecs import HOOK_VERSION

if TYPE_CHECKING:
    from xent_metrics.plugins import Plugins

__all__ = ["PluginNames", "new_plugin", "plugin_files", "write_files"]

_TEMPLATES = Path(__file__).parent / "plugin_files"
_PREFIX = "xent-metrics-"
_LONGEST = 32
#: What each kind is called, and what its module gives to the plugin's.
_KINDS = {
    "metric": ("a metric", "from {module}.metric import {class_name}, register_metrics"),
    "backend": ("a scoring backend", "from {module}.backend import score_backend"),
    "commands": ("a command", "from {module}.commands import register_commands"),
    "tasks": ("an lm-eval task", "from {module}.task_configs import register_task_configs"),
}


def new_plugin(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the plugin, such as mean-probability.")],
    metric: Annotated[bool, typer.Option("--metric", help="A metric; the default.")] = False,
    backend: Annotated[bool, typer.Option("--backend", help="A scoring backend.")] = False,
    commands: Annotated[bool, typer.Option("--commands", help="A command of xent.")] = False,
    tasks: Annotated[bool, typer.Option("--tasks", help="A task of lm-eval with its documents.")] = False,
    into: Annotated[Path, typer.Option(help="Folder in which the plugin's folder is made.")] = Path(),
) -> None:
    """Write the package of a plugin, with tests, README and CI, into a new folder xent-metrics-NAME."""
    from xent_metrics.cli.plugin_commands import loaded_plugins

    asked = {"metric": metric, "backend": backend, "commands": commands, "tasks": tasks}
    kinds = [kind for kind, wanted in asked.items() if wanted] or ["metric"]
    names = PluginNames.of(name)
    _check_free(names, kinds, loaded_plugins())
    root = context.find_root()
    if commands and root.command.get_command(root, names.name):  # type: ignore[attr-defined]
        raise PluginError(f"xent has a command {names.name!r} already; choose another name")
    folder = write_files(into / names.distribution, plugin_files(names, kinds))
    print(f"{folder} has {', '.join(_KINDS[kind][0] for kind in kinds)}. Next:")
    print(
        f"  pip install -e '{folder}[dev]'\n  xent plugins\n  cd {folder} && pytest tests{_contract_option(names, kinds)}"
    )


@dataclass(frozen=True)
class PluginNames:
    """What a plugin and its parts are called.

    >>> names = PluginNames.of("mean-probability")
    >>> names.distribution, names.module, names.identifier, names.class_name
    ('xent-metrics-mean-probability', 'xent_metrics_mean_probability', 'mean_probability', 'MeanProbability')
    """

    name: str

    @classmethod
    def of(cls, given: str) -> PluginNames:
        """The names that follow from one, with or without the prefix `xent-metrics-`.

        Raises:
            PluginError: it is no name of a package, too long, or a keyword of Python.
        """
        name = given.removeprefix(_PREFIX)
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
            better = (
                re.sub(r"[-_.\s]+", "-", re.sub(r"[^a-z0-9\-_.\s]", "", name.lower())).strip("-").lstrip("0123456789-")
            )
            hint = f" Did you mean {better!r}?" if better else ""
            raise PluginError(
                f"expected a plugin's name of lower-case words joined by hyphens, such as mean-probability; got {given!r}.{hint}"
            )
        if len(name) > _LONGEST:
            raise PluginError(f"expected a name of at most {_LONGEST} characters; {name!r} has {len(name)}")
        if keyword.iskeyword(name):
            raise PluginError(f"{name!r} is a keyword of Python, which can't name a metric; choose another name")
        return cls(name)

    @property
    def distribution(self) -> str:
        """The name that pip knows it by."""
        return _PREFIX + self.name

    @property
    def module(self) -> str:
        """The name that Python imports."""
        return self.distribution.replace("-", "_")

    @property
    def identifier(self) -> str:
        """The registered name of its metric and of its task."""
        return self.name.replace("-", "_")

    @property
    def class_name(self) -> str:
        """The name of its metric's class."""
        return "".join(word.capitalize() for word in self.name.split("-"))


def _check_free(names: PluginNames, kinds: Sequence[str], loaded: Plugins) -> None:
    """Raise if something installed has one of these names."""
    for plugin in loaded.plugins:
        if names.name == plugin.name or names.distribution == plugin.distribution:
            raise PluginError(f"the plugin {plugin} is installed already; choose another name than {names.name!r}")
        if "metric" in kinds and names.identifier in plugin.metrics:
            raise PluginError(f"{plugin} has a metric {names.identifier!r} already; choose another name")
    if importlib.util.find_spec(names.module):
        raise PluginError(f"a module {names.module} is installed already; choose another name than {names.name!r}")


def plugin_files(names: PluginNames, kinds: Sequence[str]) -> dict[Path, str]:
    """The files of the package, by their paths in its folder."""
    words = _words(names, kinds)
    files = {}
    for part in ("base", *kinds):
        for template in sorted(
            path for path in (_TEMPLATES / part).rglob("*.tmpl") if path.name != "README.section.tmpl"
        ):
            text = str(template.relative_to(_TEMPLATES / part)).removesuffix(".tmpl").replace("dot_", ".")
            path = Path(*(names.module if folder == "module" else folder for folder in Path(text).parts))
            files[path] = Template(template.read_text(encoding="utf-8")).substitute(words)
    sections = [(_TEMPLATES / kind / "README.section.tmpl").read_text(encoding="utf-8") for kind in kinds]
    files[Path("README.md")] += "".join(Template(section).substitute(words) for section in sections)
    return files


def _words(names: PluginNames, kinds: Sequence[str]) -> dict[str, str]:
    """What the templates' placeholders stand for."""
    imports = sorted(_KINDS[kind][1].format(module=names.module, class_name=names.class_name) for kind in kinds)
    exported = sorted(", ".join(line.partition(" import ")[2] for line in imports).split(", "))
    has_metric = "metric" in kinds
    return {
        "name": names.name,
        "distribution": names.distribution,
        "module": names.module,
        "metric": names.identifier,
        "class_name": names.class_name,
        "title": names.name.replace("-", " ").capitalize(),
        "command": names.name,
        "task": names.identifier,
        "task_metric": names.identifier if has_metric else "bits_per_byte",
        "task_value": "1 / 257" if has_metric else "math.log2(257)",
        "kinds": ", ".join(_KINDS[kind][0] for kind in kinds),
        "dependencies": '"xent-metrics[lm-eval]"' if "tasks" in kinds else '"xent-metrics"',
        "contract_option": _contract_option(names, kinds),
        "hook_version": str(HOOK_VERSION),
        "imports": "\n".join(imports),
        "exports": "\n".join(f'    "{name}",' for name in exported),
    }


def _contract_option(names: PluginNames, kinds: Sequence[str]) -> str:
    return f" --xent-plugin {names.name}" if "metric" in kinds else ""


def write_files(folder: Path, files: Mapping[Path, str]) -> Path:
    """Write files into a new folder, which appears when all are written.

    Raises:
        PluginError: the folder exists, or the folder around it doesn't.
    """
    if folder.exists():
        raise PluginError(f"{folder} exists already, and nothing is overwritten; remove it or choose another name")
    if not folder.parent.is_dir():
        raise PluginError(f"the folder {folder.parent} doesn't exist; make it first")
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name[:20]}.") as beside:
        whole = Path(beside) / folder.name
        for path, text in files.items():
            (whole / path).parent.mkdir(parents=True, exist_ok=True)
            (whole / path).write_text(text, encoding="utf-8")
        whole.rename(folder)
    return folder
