"""Diffusers pipelines: load them, and start trajectories as they do."""
