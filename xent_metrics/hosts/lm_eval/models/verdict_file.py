"""Keep on disk which shortcuts suit a model, so that its next start runs no forward to find out: `VerdictFile`.

The files lie in the folder that Hugging Face's libraries keep for others, ``HF_ASSETS_CACHE``, by default
``~/.cache/huggingface/assets``, and in it ``xent-metrics/shortcuts``. To have models checked again, delete them.

A verdict holds for the same model, loaded with the same options, by the same code on the same kind of processor. Of the weights,
a few bytes of each tensor are compared: that notices another model under a name in milliseconds, and a verdict is no result.
Models that were passed as objects are always checked, because anything may have been done to them.

A file that can't be read or written is no error: the model is checked.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import cached_assets_path

from xent_metrics.files import replacing
from xent_metrics.hosts.lm_eval.models.hf_forward import HFForward
from xent_metrics.hosts.lm_eval.models.verify import SHORTCUTS, Verdict
from xent_metrics.hosts.lm_eval.models.weights import content_digest, weights_digest
from xent_metrics.plugins import plugins, provenance

__all__ = ["VerdictFile"]

log = logging.getLogger(__name__)

_BYTES = 4096  # of either end of each tensor
_OWN_CODE = "transformers_modules."  # where transformers puts the code of models with trust_remote_code
_CODE = {".py", ".so", ".pyd", ".dll", ".dylib", ".c", ".cc", ".cpp", ".cu", ".h", ".metal"}
#: Environment variables that change what a product is rounded to.
_VARIABLES = ("ONEDNN_DEFAULT_FPMATH_MODE", "NVIDIA_TF32_OVERRIDE")


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
        except Exception as error:  # of weights of unusual kinds, of code that isn't in files, …
            log.info("xent-hf: %s is checked at every start, because its parts can't be told: %s", forward.name, error)
            return None

    @cached_property
    def path(self) -> Path:
        """Where it is. The folder is made; raises an `OSError`, `ValueError` or `RuntimeError` if it can't be."""
        assets = os.environ.get("HF_ASSETS_CACHE") or None  # now; huggingface_hub reads it once
        return cached_assets_path("xent-metrics", "shortcuts", self.kind, assets_dir=assets) / self.name

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
    """What a forward depends on besides the model: versions, the processor, and settings of torch."""
    installed = {
        path.name for folder in sys.path if folder.endswith("-packages") for path in Path(folder).glob("*-info")
    }
    products = (torch.backends, torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    precisions = [str(getattr(each, "fp32_precision", "")) for each in products]
    return {
        "versions": f"python {sys.version} torch {torch.__version__} transformers {transformers.__version__}",
        "installed": content_digest(str(sorted(installed))), "xent_metrics": json.dumps(provenance()),
        "processor": content_digest(str(_processor())), "precisions": " ".join(precisions),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()),
        "variables": str([os.environ.get(name) for name in _VARIABLES]),
    }  # fmt: skip


def _processor() -> list[tuple[str, Any]]:
    """The name of the processor and its instructions, or as much of it as this torch tells."""
    find: Any = getattr(torch.cpu, "get_capabilities", dict)
    found = find() | {"capability": torch.backends.cpu.get_cpu_capability()}
    return sorted((name, value) for name, value in found.items() if not name.startswith("num_"))


def _content(forward: HFForward) -> dict[str, str]:
    """The model's modules, the code that runs them, and a little of the weights."""
    modules = list(forward.model.modules())
    forwards = {f"{type(module).__qualname__} {_origin(module.forward)}" for module in modules}
    return {
        "modules": content_digest(f"{len(modules)} {sorted(forwards)}"), "code": _digest(_code(modules)),
        "autocast": str(forward.autocast), "split": str(forward.is_split),
        "weights": weights_digest(forward.model, ends=_BYTES),
    }  # fmt: skip


def _origin(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _digest(files: Iterable[Path]) -> str:
    """A digest of the names, sizes and times of files, which may be edited without a new version."""
    found = {(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files}
    return content_digest(str(sorted(found)))


def _code(modules: Iterable[torch.nn.Module]) -> Iterator[Path]:
    """The files of this package, of what transformers' models share, of the model, and of plugins with a `forward_context`."""
    yield from _files(Path(__file__).parents[3])
    shared = Path(transformers.__file__).parent
    yield from (*shared.glob("*.py"), *_files(shared / "integrations"))
    names = {type(module).__module__ for module in modules}
    beside = {name.rpartition(".")[0] for name in names if name.startswith(_OWN_CODE)}
    for name in {*names, *(name for name in sys.modules if name.rpartition(".")[0] in beside)}:
        yield _file(name)
    for implementation in plugins().manager.hook.forward_context.get_hookimpls():
        yield from _package(implementation.function.__module__)


def _file(name: str) -> Path:
    """The file of a module; raises a `LookupError` if it has none, as in a notebook."""
    file = getattr(sys.modules[name], "__file__", None)
    if file is None:
        raise LookupError(f"{name} isn't in a file")
    return Path(file)


def _package(name: str) -> Iterator[Path]:
    """The file of a module, or all files of the outermost package that it is in."""
    parts = name.split(".")
    parents = (".".join(parts[:end]) for end in range(1, len(parts)))
    outermost = next((each for each in parents if getattr(sys.modules[each], "__file__", None)), name)  # no namespace
    file = _file(outermost)
    yield from _files(file.parent) if hasattr(sys.modules[outermost], "__path__") else [file]


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.suffix in _CODE)
