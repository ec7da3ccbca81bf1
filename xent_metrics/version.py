"""The version of the installed distribution."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("xent-metrics")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"
