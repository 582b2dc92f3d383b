"""Looks for what is wrong with data before a run is spent on it."""
