"""Starting vla_jax on TPU pods, GKE and Slurm clusters. README.md is the way from laptop to pod."""
