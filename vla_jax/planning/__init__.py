"""What a program would do on TPUs that are not there: the TPU compiler's output, read."""
