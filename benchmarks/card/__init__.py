"""What gpu.py measures on one card: a module per group of sections, and the card itself."""
