"""Verification: the same seeds through FP32, fake-quantized and engine networks, compared."""
