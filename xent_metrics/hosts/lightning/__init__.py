"""Lightning: `XentCallback` evaluates metrics on any LightningModule, `LMEvalCallback` runs lm-eval tasks on it.

Both work with `lightning.pytorch` and with `pytorch_lightning`.

Who syncs: `XentCallback`, with one all_reduce per stage and epoch in the stage's `on_…_epoch_end`, and one more per
checkpoint written during a training epoch. Lightning calls these hooks on every rank. The logged values are already
equal on all ranks, so Lightning syncs nothing. Metric objects that a LightningModule logs itself
(`self.log(name, metric)`) sync in their own `compute`.
"""

from __future__ import annotations

from xent_metrics.hosts.lightning.lm_eval_callback import LMEvalCallback
from xent_metrics.hosts.lightning.xent_callback import XentCallback

__all__ = ["LMEvalCallback", "XentCallback"]
