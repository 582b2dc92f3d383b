"""Policies for robots: bundles, and a server that speaks the protocols robots already speak."""
