"""The base class of our callbacks: a `Callback` of each Lightning package that is installed.

`pip install lightning` brings `pytorch_lightning` with it. The two are the same code under two names, yet a trainer, a
LightningCLI and `isinstance` take the callbacks of their own package only. A class may have both bases: they hold hooks
that do nothing, and no state.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ...errors import MissingExtraError

__all__ = ["Callback", "log_all"]

_PACKAGES = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}


def _bases() -> tuple[type, ...]:
    found = [importlib.import_module(module) for package, module in _PACKAGES.items() if find_spec(package)]
    if not found:
        raise MissingExtraError("xent_metrics.hosts.lightning needs Lightning: pip install 'xent-metrics[lightning]'")
    return tuple(module.Callback for module in found)


if TYPE_CHECKING:

    class Callback:
        """What our callbacks use of Lightning's own."""

        def _generate_state_key(self, **kwargs: Any) -> str: ...

else:
    Callback = type("Callback", _bases(), {"__doc__": "A callback of every Lightning package that is installed."})


def log_all(module: Any, values: Mapping[str, Any], *, prog_bar: bool, logger: bool) -> None:
    """Log an epoch's values, the same on all ranks already, through the module's `log_dict`."""
    module.log_dict(
        values,
        prog_bar=prog_bar,
        logger=None if logger else False,  # None doesn't complain where the trainer has no logger
        on_step=False,
        on_epoch=True,
        add_dataloader_idx=False,
        batch_size=1,
        # Together: every rank logs, nothing is synced again, and no advice to sync is printed.
        sync_dist=True,
        rank_zero_only=True,
    )
