"""The plugins' tests start as all others do."""

from support.repeatable import seed  # noqa: F401
