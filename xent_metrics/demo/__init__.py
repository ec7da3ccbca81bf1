"""The embedded main job: train a toy language model with Lightning, evaluate it with lm-eval, and get the same numbers.

python -m xent_metrics.demo            (or `make demo`)
"""
