"""From logits or hidden states to `TokenScores`: nll, confidence, correctness and more of each token, in one pass."""
