"""The installation: versions, extras, plugins, who scores rows on which device, threads and GPUs."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from packaging.requirements import Requirement

from xent_metrics.doctor.findings import Finding
from xent_metrics.plugins import Plugins, plugins
from xent_metrics.scoring.backends import first_to_accept
from xent_metrics.scoring.linear import LMHead
from xent_metrics.version import __version__

__all__ = ["check_installation", "check_requirements"]

#: Packages whose versions decide what is computed, and how fast.
_PACKAGES = ("torch", "torchmetrics", "numpy", "lm_eval", "transformers", "accelerate", "lightning")
_NOT_FOR_USERS = ("all", "dev")
_ROWS, _VOCAB, _HIDDEN = 16, 512, 32


def check_installation() -> list[Finding]:
    """Look at what is installed here, and at which parts of it are in use."""
    try:
        required = requires("xent-metrics") or []
    except PackageNotFoundError:  # a source tree on the path
        required = []
    return [
        *_versions(),
        *check_requirements(required),
        *_plugins(plugins()),
        *(finding for device in _devices() for finding in _backends(device)),
        *_threads(),
        *_gpus(),
    ]


def _versions() -> Iterator[Finding]:
    found = [f"python {platform.python_version()}", f"xent-metrics {__version__}"]
    found += [f"{name} {installed}" for name in _PACKAGES if (installed := _installed(name))]
    yield Finding("versions", "python", ", ".join(found), "note")


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_requirements(required: Sequence[str]) -> Iterator[Finding]:
    """Compare requirements, as a distribution's metadata has them, with what is installed.

    >>> [finding.kind for finding in check_requirements(["torch<1", "no-such-package; extra == 'plots'"])]
    ['unsupported-version', 'missing-extra']
    """
    missing: dict[str, list[str]] = {}
    for requirement in map(Requirement, required):
        extra = _extra(requirement)
        if extra in _NOT_FOR_USERS or not (requirement.marker is None or requirement.marker.evaluate({"extra": extra})):
            continue
        installed = _installed(requirement.name)
        if installed is None:
            missing.setdefault(extra, []).append(requirement.name)
        elif not requirement.specifier.contains(installed, prereleases=True):
            yield Finding(
                "unsupported-version",
                requirement.name,
                f"{requirement.name} {installed} is installed; xent-metrics needs {requirement.specifier}. "
                f"Run `pip install '{requirement.name}{requirement.specifier}'`",
                "error",
            )
    for extra, names in missing.items():
        yield _missing(extra, names)


def _extra(requirement: Requirement) -> str:
    """The extra that a requirement belongs to; empty for those of the package itself."""
    found = re.search(r"extra == ['\"]([^'\"]+)", str(requirement.marker or ""))
    return found[1] if found else ""


def _missing(extra: str, names: list[str]) -> Finding:
    listed = ", ".join(names)
    if not extra:
        return Finding("missing-package", "python", f"{listed}: not installed. Run `pip install xent-metrics`", "error")
    text = f"the extra {extra} lacks {listed}. To use it, run `pip install 'xent-metrics[{extra}]'`"
    return Finding("missing-extra", extra, text, "note")


def _plugins(loaded: Plugins) -> Iterator[Finding]:
    for plugin in loaded.plugins:
        if plugin.error is None:
            hooks = ", ".join(plugin.hooks) or "no hook"
            yield Finding("plugin", str(plugin), f"loaded; implements {hooks}", "note")
        else:
            why = f"{type(plugin.error).__name__}: {plugin.error}"
            text = f"set aside: {why}. Repair or uninstall it, or leave it out of XENT_METRICS_PLUGINS"
            yield Finding("plugin-set-aside", str(plugin), text, "error")


def _devices() -> list[torch.device]:
    return [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


def _backends(device: torch.device) -> Iterator[Finding]:
    """Who scores a few rows of logits, and of hidden states, on this device."""
    target = torch.zeros(_ROWS, dtype=torch.long, device=device)
    for dtype in (torch.float32, torch.bfloat16):
        place = f"{device.type}, {str(dtype).removeprefix('torch.')}"
        logits = torch.zeros(_ROWS, _VOCAB, dtype=dtype, device=device)
        yield _scored_by("score_backend", "logits", place, logits=logits, target=target)
        head = LMHead(torch.zeros(_VOCAB, _HIDDEN, dtype=dtype, device=device))
        hidden = torch.zeros(_ROWS, _HIDDEN, dtype=dtype, device=device)
        yield _scored_by(
            "linear_cross_entropy_backend", "hidden states", place, hidden_states=hidden, head=head, target=target
        )


def _scored_by(hook: str, rows: str, place: str, **given: object) -> Finding:
    try:
        found = first_to_accept(hook, **given, extra_scores={})
    except Exception as error:  # whatever a third party's plugin does here
        text = f"{hook} raised {type(error).__name__}: {error}. XENT_METRICS_PLUGINS=a,b loads only the plugins named"
        return Finding("backend-raised", place, text, "error")
    return Finding("scored-by", place, f"rows of {rows}: {found or 'torch; no plugin takes them'}", "note")


def _threads() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    yield Finding("threads", "torch", f"threads: {threads}; cores that this process may use: {cores}", "note")
    if threads > cores:
        text = f"{threads} threads share {cores} cores, which is slow. Set OMP_NUM_THREADS={cores}"
        yield Finding("too-many-threads", "torch", text, "warning")


def _gpus() -> Iterator[Finding]:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            text = f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
            yield Finding("gpu", f"cuda:{index}", text, "note")
    else:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        yield Finding("gpu", "torch", f"no GPU in use; torch {torch.__version__} is {built}", "note")
