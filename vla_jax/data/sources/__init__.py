"""Data sets as random access to examples."""
