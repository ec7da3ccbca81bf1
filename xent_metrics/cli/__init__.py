"""The `xent` command."""

from xent_metrics.cli.app import main

__all__ = ["main"]
