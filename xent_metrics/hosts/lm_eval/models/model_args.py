"""The module that `TorchLM` scores, from what a command line can say: where its class is, and its checkpoint.

--model_args module=my_package.model:Net,checkpoint=last.ckpt,tokenizer=bytes
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xent_metrics.errors import InvalidInputError

__all__ = ["at_least_one", "device_for", "dtype_for", "load_module", "own_max_length", "yes_or_no"]


def load_module(
    module: Any, *, checkpoint: str | os.PathLike[str] | None = None, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """The module with its weights, on the CPU.

    Args:
        module: a module; or a class or function that makes one, itself or as ``"package.module:Name"``.
        checkpoint: a Lightning checkpoint, or a state dict that `torch.save` wrote. A class with `load_from_checkpoint`
            (a LightningModule) is built by it, with the hyperparameters that the checkpoint holds.
        options: keyword arguments of the class or function.

    Raises:
        InvalidInputError: nothing of that name, a checkpoint that is missing or doesn't fit, something that is no module.

    >>> load_module("torch.nn:Linear", options={"in_features": 2, "out_features": 3})
    Linear(in_features=2, out_features=3, bias=True)
    """
    options = dict(options or {})
    if checkpoint is not None and not os.path.isfile(checkpoint):
        raise InvalidInputError(f"checkpoint={str(checkpoint)!r}: there is no such file")
    if module is None:
        raise InvalidInputError("a model needs module=package.module:Class; a checkpoint alone doesn't say its class")
    made = _named(module) if isinstance(module, str) else module
    if isinstance(made, nn.Module):
        if options:
            raise InvalidInputError(f"module_options are for a class; {type(made).__name__} is a module already")
    elif checkpoint is not None and hasattr(made, "load_from_checkpoint"):
        return _checked(made.load_from_checkpoint(str(checkpoint), map_location="cpu", **options))
    elif callable(made):
        made = _built(made, options)
    if checkpoint is not None:
        _load_weights(_checked(made), checkpoint)
    return _checked(made)


def _named(name: str) -> Any:
    path, _, attribute = name.partition(":")
    if not attribute:
        raise InvalidInputError(f"module={name!r}; expected package.module:Class")
    try:
        found: Any = importlib.import_module(path)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InvalidInputError(
            f"module={name!r}: {error}. Install its package, or put its folder on PYTHONPATH (PYTHONPATH=. is this one)"
        ) from error
    return found


def _built(make: Any, options: dict[str, Any]) -> Any:
    try:
        return make(**options)
    except TypeError as error:
        given = ", ".join(options) or "none"
        raise InvalidInputError(f"{make!r} can't be made with module_options {given}: {error}") from error


def _checked(made: Any) -> nn.Module:
    if not isinstance(made, nn.Module):
        raise InvalidInputError(f"expected a torch.nn.Module, or a class or function that makes one; got {made!r}")
    return made


def _load_weights(module: nn.Module, checkpoint: str | os.PathLike[str]) -> None:
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise InvalidInputError(f"{str(checkpoint)!r} holds a {type(content).__name__}; expected a state dict")
    weights: Mapping[str, Tensor] = content.get("state_dict", content)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise InvalidInputError(
            f"{str(checkpoint)!r} doesn't fit {type(module).__name__}: {error}. A LightningModule's checkpoint "
            "fits that LightningModule, not the network in it"
        ) from error


def device_for(device: str | torch.device | None) -> torch.device:
    """The device asked for; a CUDA device where there is none means the CPU (`lm_eval` asks for cuda:0 by default)."""
    wanted = torch.device(device or "cuda")
    if wanted.type != "cuda":
        return wanted
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = os.environ.get("LOCAL_RANK")  # a launcher's processes take a device each, whichever was named
    return wanted if local_rank is None else torch.device("cuda", int(local_rank))


def dtype_for(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype of that name; None leaves the module's own."""
    found = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype | None):
        raise InvalidInputError(f'dtype is a torch dtype such as "bfloat16"; got {dtype!r}')
    return found


def own_max_length(module: nn.Module) -> int:
    """How many ids the module says that it can read at once, itself or in its `config`."""
    for owner in (module, getattr(module, "config", None)):
        for name in ("max_length", "n_positions", "max_position_embeddings", "n_ctx"):
            found = getattr(owner, name, None)
            if isinstance(found, int):
                return found
    raise InvalidInputError(f"{type(module).__name__} doesn't say how many ids it can read at once; pass max_length=…")


def at_least_one(name: str, value: Any) -> int:
    """The number that a command line may give as text."""
    try:
        number = int(value) if float(value) == int(value) else 0
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise InvalidInputError(f"{name} is a whole number of at least 1; got {value!r}")
    return number


def yes_or_no(name: str, value: Any) -> bool:
    """A truth value; "no" would count as one that is true."""
    if not isinstance(value, bool):
        raise InvalidInputError(f"{name} is true or false; got {value!r}")
    return value
