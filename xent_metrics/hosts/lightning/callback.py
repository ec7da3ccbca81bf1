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

from xent_metrics.errors import MetricOptionError, MissingExtraError

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
    """Log an epoch's values, the same on all ranks already, through the module's `log_dict`.

    Raises:
        MetricOptionError: one of the names was logged already; one value would silently take the other's place.
    """
    if taken := sorted(values.keys() & _logged_already(module)):
        raise MetricOptionError(
            f"{', '.join(taken)}: logged by a callback, and by {type(module).__name__} or another callback under the same name. "
            "Log it under another one, or give the callback's entry a `name`: {'metric': …, 'name': …}"
        )
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


def _logged_already(module: Any) -> set[str]:
    """The names of the values that were logged in this epoch so far, as Lightning will show them."""
    metas = [result.meta for result in (module.trainer._results or {}).values() if not result.has_reset]
    return {
        meta.name if meta.dataloader_idx is None else f"{meta.name}/dataloader_idx_{meta.dataloader_idx}"
        for meta in metas
        if not meta.forked  # else they are shown as …_step and …_epoch
    }
