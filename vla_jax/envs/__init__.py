"""Simulated worlds. Nothing here imports TensorFlow: a process that renders must not."""
