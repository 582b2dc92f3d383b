"""From a bundle on disk to actions in physical units.

policy = vla_jax.serving.load("my_bundle")
action = policy({"image": pixels}, "pick the dog")
"""

from vla_jax.serving.policy import Action, BundlePolicy, Observation, load

__all__ = ["Action", "BundlePolicy", "Observation", "load"]
