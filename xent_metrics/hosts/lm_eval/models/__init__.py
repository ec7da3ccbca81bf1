"""lm-eval models with token scores: `XentHFLM` (xent-hf) and `TorchLM` (xent-torch)."""
