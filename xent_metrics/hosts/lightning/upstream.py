"""The private attributes of Lightning that our callbacks read, one function each.

`lightning.pytorch` and `pytorch_lightning` have the same ones. If a new version moves one, its function here is the only
place to change.
"""

from __future__ import annotations

from typing import Any

__all__ = ["active_loaders", "logged_names"]


def active_loaders(trainer: Any) -> list[list[Any]]:
    """For each `dataloader_idx` of the running loop, the loaders that a step draws from: one, or several in parallel.

    `Trainer._active_loop._combined_loader` and `CombinedLoader._mode`, read in Lightning 2.6.6. The public
    `trainer.val_dataloaders` may still hold the loaders of an earlier run. If the attributes move, look for what
    `_EvaluationLoop.run` and `_FitLoop.advance` iterate over.
    """
    combined = trainer._active_loop._combined_loader
    return [[loader] for loader in combined.flattened] if combined._mode == "sequential" else [combined.flattened]


def logged_names(module: Any) -> set[str]:
    """The names of the values logged so far in this epoch, as Lightning displays them.

    `Trainer._results`, read in Lightning 2.6.6: a dict of results with `meta` and `has_reset`. If it moves, look for where
    `LightningModule.log` stores its values. An empty set only turns off the error for names that are logged twice.
    """
    metas = [result.meta for result in (module.trainer._results or {}).values() if not result.has_reset]
    return {
        meta.name if meta.dataloader_idx is None else f"{meta.name}/dataloader_idx_{meta.dataloader_idx}"
        for meta in metas
        if not meta.forked  # forked values are displayed as …_step and …_epoch
    }
