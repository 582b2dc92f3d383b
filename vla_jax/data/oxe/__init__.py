"""Open X-Embodiment: what each data set means, and published mixtures of them."""
