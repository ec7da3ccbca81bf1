"""Lightning: `XentCallback` measures any LightningModule by metrics' names, `LMEvalCallback` runs lm-eval tasks on it.

Both are callbacks of `lightning.pytorch` and of `pytorch_lightning` alike, whichever the module and the trainer come from.

Who syncs: `XentCallback`, by one all_reduce a stage and epoch in the stage's `on_…_epoch_end`, and by one more for a
checkpoint that is written in the middle of a training epoch. Lightning calls these hooks on every rank. What is logged
is the same on all ranks already, so Lightning syncs nothing. Metric objects that a LightningModule logs by itself
(`self.log(name, metric)`) sync in their own `compute`.
"""

from __future__ import annotations

from xent_metrics.hosts.lightning.lm_eval_callback import LMEvalCallback
from xent_metrics.hosts.lightning.xent_callback import XentCallback

__all__ = ["LMEvalCallback", "XentCallback"]
