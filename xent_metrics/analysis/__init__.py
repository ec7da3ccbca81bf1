"""What the numbers are worth: standard errors, comparisons, pictures."""

from .standard_error import StandardError, standard_error, standard_error_from_moments

__all__ = ["StandardError", "standard_error", "standard_error_from_moments"]
