"""Train vision-language-action models by co-fine-tuning, on TPU pods and GPUs, with JAX."""
