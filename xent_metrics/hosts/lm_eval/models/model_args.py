"""Arguments of our lm-eval models that a command line can give: where a module's class is, its checkpoint, numbers, dtypes.

--model_args module=my_package.model:Net,checkpoint=last.ckpt,tokenizer=bytes
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from xent_metrics.errors import InvalidInputError, MetricOptionError
from xent_metrics.hosts.config import named_object

__all__ = ["at_least_one", "device_for", "dtype_for", "load_module", "own_max_length", "yes_or_no"]


def load_module(
    module: Any, *, checkpoint: str | os.PathLike[str] | None = None, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Load a module and its weights, on the CPU.

    Args:
        module: a module; or a class or function that makes one, or its import path, ``"package.module:Name"``.
        checkpoint: a Lightning checkpoint, or a state dict written by `torch.save`. A class with `load_from_checkpoint`
            (a LightningModule) loads it by itself, with the hyperparameters in the checkpoint.
        options: keyword arguments of the class or function.

    Raises:
        InvalidInputError: an import path that names nothing, a missing checkpoint or one that doesn't fit, or an object that
            is no module.

    >>> load_module("torch.nn:Linear", options={"in_features": 2, "out_features": 3})
    Linear(in_features=2, out_features=3, bias=True)
    """
    if checkpoint is not None and not os.path.isfile(checkpoint):
        raise InvalidInputError(f"checkpoint={str(checkpoint)!r}: there is no such file")
    if module is None:
        raise InvalidInputError("a model needs module=package.module:Class; a checkpoint alone doesn't say its class")
    found = _named(module) if isinstance(module, str) else module
    if checkpoint is not None and not isinstance(found, nn.Module) and hasattr(found, "load_from_checkpoint"):
        with _reading(checkpoint):
            made = found.load_from_checkpoint(str(checkpoint), map_location="cpu", **(options or {}))
        return _checked(made)
    made = _checked(_made(found, dict(options or {})))
    if checkpoint is not None:
        _load_weights(made, checkpoint)
    return made


def _named(path: str) -> Any:
    try:
        return named_object(path)
    except MetricOptionError as error:
        raise InvalidInputError(f"module={error}") from error


def _made(found: Any, options: dict[str, Any]) -> Any:
    """The module itself, or what the class or function makes of `options`."""
    if isinstance(found, nn.Module) and options:
        raise InvalidInputError(f"module_options are for a class; {type(found).__name__} is a module already")
    return found if isinstance(found, nn.Module) or not callable(found) else _built(found, options)


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
    with _reading(checkpoint):
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise InvalidInputError(
            f"{str(checkpoint)!r} holds a value of type {type(weights).__name__}; expected a state dict"
        )
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise InvalidInputError(
            f"{str(checkpoint)!r} doesn't fit {type(module).__name__}: {error}. A LightningModule's checkpoint "
            "fits that LightningModule, not the module inside it"
        ) from error


@contextmanager
def _reading(checkpoint: str | os.PathLike[str]) -> Iterator[None]:
    """Say of which file it is that it can't be loaded."""
    try:
        yield
    except (EOFError, RuntimeError, UnpicklingError) as error:
        hint = ""
        if isinstance(error, UnpicklingError):
            hint = (
                ". A whole module isn't read, because that would run code from the file; save its state_dict() instead"
            )
        raise InvalidInputError(
            f"{str(checkpoint)!r} can't be loaded: {str(error).rstrip('.') or type(error).__name__}{hint}"
        ) from error


def device_for(device: str | torch.device | None) -> torch.device:
    """The device asked for; CUDA means the CPU if there is no CUDA device (`lm_eval` asks for cuda:0 by default)."""
    wanted = torch.device(device or "cuda")
    if wanted.type != "cuda":
        return wanted
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = os.environ.get("LOCAL_RANK")  # a launcher's processes take one device each, whichever was named
    return wanted if local_rank is None else torch.device("cuda", int(local_rank))


def dtype_for(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype of that name; None keeps the module's own. Unlike lm-eval's `get_dtype` it refuses other names."""
    found = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype | None):
        raise InvalidInputError(f'dtype is a torch dtype such as "bfloat16"; got {dtype!r}')
    return found


def own_max_length(module: nn.Module) -> int:
    """The most ids that a module reads at once, by its own attribute or that of its `config`."""
    for owner in (module, getattr(module, "config", None)):
        for name in ("max_length", "n_positions", "max_position_embeddings", "n_ctx"):
            found = getattr(owner, name, None)
            if isinstance(found, int):
                return found
    raise InvalidInputError(f"{type(module).__name__} doesn't say how many ids it can read at once; pass max_length=…")


def at_least_one(name: str, value: Any) -> int:
    """A whole number of at least 1, which a command line may give as text."""
    try:
        number = int(value) if float(value) == int(value) else 0
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise InvalidInputError(f"{name} is a whole number of at least 1; got {value!r}")
    return number


def yes_or_no(name: str, value: Any) -> bool:
    """A boolean; the text "no" would count as true."""
    if not isinstance(value, bool):
        raise InvalidInputError(f"{name} is true or false; got {value!r}")
    return value
