"""AccuQuant: take a trained diffusion model to int8 on real engines without losing its images."""

__version__ = "0.1.0"
