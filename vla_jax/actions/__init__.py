"""Actions as numbers and as tokens: the spec that names every dimension, and the tokenizers."""
