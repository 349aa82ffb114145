"""Calibration: learn activation scales over several simulated denoising steps."""

from .calibrate import calibrate
from .calibration_settings import CalibrationSettings

__all__ = ["CalibrationSettings", "calibrate"]
