"""From records on disk to batches. The only part that imports TensorFlow."""
