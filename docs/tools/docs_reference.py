"""Writes what the repository has of generated documentation: the README's table of metrics, and docs/errors.md.

    make reference      # after a metric or an error has changed; a test holds both to be current

With the metrics of the plugins in plugins/, which have to be installed, whatever `XENT_METRICS_PLUGINS` says.
"""

from __future__ import annotations

import functools
import re
from importlib.metadata import entry_points
from pathlib import Path

from xent_metrics.explain.markdown import errors_page, metrics_table
from xent_metrics.hookspecs import PROJECT
from xent_metrics.plugins import Plugins, use_plugins

ROOT = Path(__file__).parents[2]
_TABLE = re.compile(r"(<!-- written by `make reference` -->\n\n).*?(?=<!-- until here -->)", re.DOTALL)


@functools.cache
def repository_plugins() -> Plugins:
    """The built-ins and the plugins of this repository."""
    ours = {path.parent.name for path in Path(__file__).parents[2].glob("plugins/*/pyproject.toml")}
    return Plugins(point for point in entry_points(group=PROJECT) if point.dist and point.dist.name in ours)


def generated() -> dict[Path, str]:
    """What the files should contain, by path."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    with use_plugins(repository_plugins()):
        table, errors = metrics_table(), errors_page()
    return {
        ROOT / "README.md": _TABLE.sub(lambda found: f"{found[1]}{table}\n\n", readme),
        ROOT / "docs" / "errors.md": errors,
    }


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
