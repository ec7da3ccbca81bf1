"""Marks of tests that need a newer Python than the package does."""

import sys

import pytest

needs_trl = pytest.mark.skipif(sys.version_info < (3, 11), reason="trl needs Python 3.11")
