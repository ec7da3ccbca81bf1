"""What the numbers are worth: standard errors, comparisons, pictures."""

from .standard_error import standard_error

__all__ = ["standard_error"]
