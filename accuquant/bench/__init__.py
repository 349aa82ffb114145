"""Bench: which engine is the fastest on this machine, and whether int8 pays here."""
