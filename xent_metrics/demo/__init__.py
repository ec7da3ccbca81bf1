"""The demo: train a toy language model with Lightning, evaluate it with lm-eval, and get exactly the same numbers.

python -m xent_metrics.demo            (or `make demo`)
"""
