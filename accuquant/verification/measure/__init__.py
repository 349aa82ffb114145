"""Measure: metrics, trajectories side by side, layer parity, latency."""
