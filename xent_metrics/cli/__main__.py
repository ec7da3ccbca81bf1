"""``python -m xent_metrics.cli``: the `xent` command where no console script is installed."""

from xent_metrics.cli.app import main

main()
