"""Fails unless the installed package imports and computes with no host beside it."""

import importlib.util
import math

import torch

from xent_metrics import TokenMetricCollection

hosts = ["lm_eval", "lightning", "transformers", "matplotlib", "scipy"]
present = [name for name in hosts if importlib.util.find_spec(name)]
assert not present, present
metrics = TokenMetricCollection(["cross_entropy", "perplexity", "token_accuracy"])
metrics.update(torch.zeros(2, 3, 8), torch.zeros(2, 3, dtype=torch.long))
values = {name: float(value) for name, value in metrics.compute().items()}
assert math.isclose(values["cross_entropy"], math.log(8), rel_tol=1e-6), values
assert math.isclose(values["perplexity"], 8, rel_tol=1e-6), values
