"""RT-2's ablation and comparisons like it: a list of trainings, and their tables."""
