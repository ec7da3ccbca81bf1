"""The base class of our callbacks, a `Callback` of every installed Lightning package.

`pip install lightning` also installs `pytorch_lightning`: the same code under another name. Trainers, LightningCLI and
`isinstance` accept only callbacks of their own package. Our callbacks inherit from both base classes, which have no
state and only empty hooks.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from xent_metrics.errors import MetricOptionError, MissingExtraError
from xent_metrics.hosts.lightning.upstream import logged_names
from xent_metrics.hosts.trackers import Send, of_lightning_logger

__all__ = ["Callback", "log_all", "trackers_of"]

_PACKAGES = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}


def _bases() -> tuple[type, ...]:
    found = [importlib.import_module(module) for package, module in _PACKAGES.items() if find_spec(package)]
    if not found:
        raise MissingExtraError("xent_metrics.hosts.lightning needs Lightning: pip install 'xent-metrics[lightning]'")
    return tuple(module.Callback for module in found)


if TYPE_CHECKING:

    class Callback:
        """Lightning's `Callback`, which mypy doesn't see."""

else:
    Callback = type("Callback", _bases(), {"__doc__": "A callback of every installed Lightning package."})


def log_all(module: Any, values: Mapping[str, Any], *, prog_bar: bool, logger: bool) -> None:
    """Log an epoch's values with the module's `log_dict`; they must already be equal on all ranks.

    Args:
        module: the LightningModule.
        values: by the name to log them under; numbers keep all of their bits.
        prog_bar: show them in the progress bar, without the standard errors.
        logger: send them to the trainer's loggers.

    Raises:
        MetricOptionError: one of the names is already logged, and one value would silently replace the other.
    """
    if taken := sorted(values.keys() & logged_names(module)):
        raise MetricOptionError(
            f"{', '.join(taken)}: logged by a callback and, under the same name, by {type(module).__name__} or another "
            "callback. Rename one of them; a callback's entry takes a `name`: {'metric': …, 'name': …}"
        )
    exact = {
        name: torch.as_tensor(value, dtype=torch.float64) for name, value in values.items()
    }  # not float32, as a number
    for is_error in (False, True):
        module.log_dict(
            {name: value for name, value in exact.items() if ("_stderr" in name) == is_error},
            prog_bar=prog_bar and not is_error,
            logger=None if logger else False,  # True would warn if the trainer has no logger
            on_step=False,
            on_epoch=True,
            add_dataloader_idx=False,
            batch_size=1,
            # With both, every rank logs, nothing is synced again, and Lightning doesn't advise to sync.
            sync_dist=True,
            rank_zero_only=True,
        )


def trackers_of(trainer: Any) -> list[Send]:
    """The trainer's loggers that take pictures; none on a rank that logs nothing, nor in the sanity check."""
    if not trainer.is_global_zero or trainer.sanity_checking:
        return []
    return [send for logger in trainer.loggers if (send := of_lightning_logger(logger))]
