"""Where arrays live: the device mesh and the rules from parameter names to mesh axes."""
