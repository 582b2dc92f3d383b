"""Meta-World: fifty tasks of one simulated arm, a published benchmark (arXiv 1910.10897)."""
