"""Lines of progress for people who follow a log live."""

from __future__ import annotations


def say(text: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(text, flush=True)
