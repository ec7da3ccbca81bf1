"""From logits or hidden states to `TokenScores`: per-token nll, confidence and correctness, in one pass."""
