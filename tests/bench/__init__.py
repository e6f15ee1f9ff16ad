"""The benchmark; `python -m tests.bench` runs it."""
