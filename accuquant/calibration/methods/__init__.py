"""Calibration methods: a file each, all with one quantizer, placement, seeds and export."""
