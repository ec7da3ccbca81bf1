"""The version: hatch reads it here for this package and for its plugins."""

__all__ = ["__version__"]

__version__ = "0.1.0"
