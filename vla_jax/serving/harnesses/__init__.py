"""Bundles in the loops of published evaluation harnesses."""
