"""Slipway's logic: typed, tested, used by the modules of the same names."""
