"""Checkpoints: of a run (Orbax), and of parameters alone (big_vision's npz)."""
