"""Writes what the repository has of generated documentation: the README's table of metrics, and docs/errors.md.

    make reference      # after a metric or an error has changed; a test holds both to be current

With the metrics of the plugins in plugins/, which have to be installed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLUGINS = "emd,focal"
_TABLE = re.compile(r"(<!-- written by `make reference` -->\n\n).*?(?=<!-- until here -->)", re.DOTALL)


def generated() -> dict[Path, str]:
    """What the files should contain, by path."""
    from xent_metrics.explain.markdown import errors_page, metrics_table

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return {
        ROOT / "README.md": _TABLE.sub(lambda found: f"{found[1]}{metrics_table()}\n\n", readme),
        ROOT / "docs" / "errors.md": errors_page(),
    }


if __name__ == "__main__":
    os.environ["XENT_METRICS_PLUGINS"] = PLUGINS
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
