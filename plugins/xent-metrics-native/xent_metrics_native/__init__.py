"""C kernels for the CPU, as a plugin of xent-metrics.

    score_backend                  scores rows of logits in one pass over them           logits.py
    linear_cross_entropy_backend   scores hidden states without writing their logits     products.py
    forward_context                runs parts of a model's decoder layers                layers.py

Once the package is installed, they are used automatically; `XENT_METRICS_PLUGINS=` (empty) switches them off. They return
None for tensors that they can't take, such as those on other devices, and torch computes these.
"""

from xent_metrics_native.layers import forward_context
from xent_metrics_native.logits import score_backend
from xent_metrics_native.products import linear_cross_entropy_backend

__all__ = ["forward_context", "linear_cross_entropy_backend", "score_backend"]
