"""Fails unless the plugin of the distribution that is named is installed and loaded, and scores are still those of torch."""

import sys

import torch

from xent_metrics import score_tokens
from xent_metrics.plugins import plugins

[plugin] = [each for each in plugins().plugins if each.distribution == sys.argv[1]]
assert plugin.error is None, plugin.error
logits, target = torch.randn(64, 1000), torch.randint(1000, (64,))
expected = torch.nn.functional.cross_entropy(logits, target, reduction="none")
torch.testing.assert_close(score_tokens(logits, target).nll.float(), expected)
