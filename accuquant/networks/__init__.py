"""Denoising networks: what they take, their layers, and their fake-quantized form."""
