"""The one exception that modules turn into a failure message."""

from __future__ import annotations


class SlipwayError(Exception):
    """Something a person must act on; the text says what and, where known, how. Never holds a secret."""
