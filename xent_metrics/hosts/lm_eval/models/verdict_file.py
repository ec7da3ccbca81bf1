"""Keep on disk which shortcuts suit a model, so that its next start runs no forward to find out: `VerdictFile`.

The files lie in the folder that Hugging Face's libraries keep for others, one for each model: ``HF_ASSETS_CACHE``, by default
``~/.cache/huggingface/assets``, and in it ``xent-metrics/shortcuts``. To have a model checked again, delete them.

A verdict holds for the same model with the same options and versions on the same kind of device. Of the weights, a few bytes of
each tensor are compared: that notices another model under a name, in milliseconds, and a verdict is no result. Models that were
passed as objects are always checked, because anything may have been done to them.

A file that can't be read or written is no error: the model is checked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import cached_assets_path

from xent_metrics.files import replacing
from xent_metrics.hosts.lm_eval.models.hf_forward import HFForward
from xent_metrics.hosts.lm_eval.models.verify import SHORTCUTS, Verdict
from xent_metrics.hosts.lm_eval.models.weights import content_digest, weights_digest
from xent_metrics.plugins import plugins, provenance

__all__ = ["VerdictFile"]

log = logging.getLogger(__name__)

#: What runs models, beside our own plugins.
_PACKAGES = ("torch", "transformers", "accelerate", "peft", "flash-attn", "kernels", "triton", "bitsandbytes")
_OWN_CODE = "transformers_modules."  # where transformers puts the code of models with trust_remote_code
_BYTES = 4096  # of either end of each tensor


class VerdictFile:
    """The file of a model's verdict.

    Args:
        forward: the model.
        options: how it was loaded, and the device, by name.
    """

    def __init__(self, forward: HFForward, options: Mapping[str, str]) -> None:
        self.key = {**options, **_environment(), **_content(forward)}
        self.name = f"{content_digest(json.dumps(self.key, sort_keys=True))}.json"
        self.kind = forward.name

    @classmethod
    def of(cls, forward: HFForward, options: Mapping[str, str]) -> VerdictFile | None:
        """The file; None for a model or an installation that can't be described, which is checked each time."""
        try:
            return cls(forward, options)
        except Exception:  # of weights of unusual kinds, of code that isn't in files, …
            log.debug("xent-hf: %s can't be described", forward.name, exc_info=True)
            return None

    @property
    def path(self) -> Path:
        """Where it is. The folder is made; raises an `OSError`, `ValueError` or `RuntimeError` if it can't be."""
        return cached_assets_path("xent-metrics", "shortcuts", self.kind) / self.name

    def read(self) -> Verdict | None:
        """The verdict of an earlier start; None if there is none."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return _verdict(found["verdict"]) if found["key"] == self.key else None
        except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
            log.debug("xent-hf: no verdict on %s: %s", self.kind, error)
            return None

    def write(self, verdict: Verdict) -> None:
        """Keep the verdict, if it is lasting."""
        if not verdict.lasting:
            return
        content = json.dumps({"key": self.key, "verdict": dataclasses.asdict(verdict)}, indent=1)
        try:
            with replacing(self.path) as new:
                new.write_text(content, encoding="utf-8")
        except (OSError, ValueError, RuntimeError) as error:
            log.info(
                "xent-hf: %s is checked again at its next start, because its verdict can't be kept: %s",
                self.kind,
                error,
            )


def _verdict(found: Mapping[str, Any]) -> Verdict:
    """Raises one of several errors if something is missing or damaged."""
    off = {str(name): str(reason) for name, reason in found["off"].items()}
    on = tuple(str(name) for name in found["on"])
    if not {*on, *off} <= {*SHORTCUTS}:
        raise ValueError(f"unknown shortcuts in {[*on, *off]}")
    return Verdict(on, off, float(found["rounding"]), float(found["moved"]))


def _environment() -> dict[str, str]:
    """What a forward depends on besides the model and the device."""
    versions = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "versions": json.dumps(versions | provenance()), "python": sys.version,
        "cpu": torch.backends.cpu.get_cpu_capability(), "matmul_precision": torch.get_float32_matmul_precision(),
    }  # fmt: skip


def _content(forward: HFForward) -> dict[str, str]:
    """The model's modules, the code that runs them, and a little of the weights."""
    modules = list(forward.model.modules())
    forwards = {f"{type(module).__qualname__} {_origin(module.forward)}" for module in modules}
    ours = Path(__file__).parent.glob("*.py")
    return {
        "modules": content_digest(f"{len(modules)} {sorted(forwards)}"),
        "code": _digest_of_files({*ours, *_sources(type(module).__module__ for module in modules)}),
        "plugins": content_digest(str(sorted(_plugin_files()))),
        "split": str(forward.is_split), "weights": weights_digest(forward.model, ends=_BYTES),
    }  # fmt: skip


def _sources(names: Iterable[str]) -> Iterator[Path]:
    """The files of Python modules and, of a model that brings its own code, of what was imported from beside them."""
    found = {*names}
    beside = {name.rpartition(".")[0] for name in found if name.startswith(_OWN_CODE)}
    found |= {name for name in sys.modules if name.rpartition(".")[0] in beside}
    for name in found:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file:
            yield Path(file)


def _origin(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _digest_of_files(files: Iterable[Path]) -> str:
    """A digest of what Python files hold, which may be edited without a new version."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _plugin_files() -> Iterator[tuple[str, int, int]]:
    """The name, size and time of each file of plugins that give a `forward_context`, compiled ones among them."""
    for implementation in plugins().manager.hook.forward_context.get_hookimpls():
        package = sys.modules.get(implementation.function.__module__.partition(".")[0])
        file = Path(getattr(package, "__file__", None) or __file__)
        files = file.parent.rglob("*") if hasattr(package, "__path__") else [file]
        for each in files:
            if each.is_file() and each.suffix != ".pyc":
                yield each.name, each.stat().st_size, each.stat().st_mtime_ns
