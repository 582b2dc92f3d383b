"""One update function and one loop for every stage of training."""
