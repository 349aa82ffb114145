"""Scales and placement from observed values, without torch: what calibration and observation share."""
