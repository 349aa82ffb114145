"""From a network's output to the clean image it implies."""

from __future__ import annotations

import numpy as np

from accuquant.errors import EngineError
from accuquant.runtime.noise_schedule import Float32Array
from accuquant.runtime.scheduler_config import SchedulerConfig


def predicted_x0(
    config: SchedulerConfig, output: Float32Array, x: Float32Array, abar: np.float32
) -> Float32Array:
    """Return x_0 implied by the network's `output` at latents `x` [B, C, H, W], clipped as configured.

    epsilon: x_0 = (x - sqrt(1 - abar) eps) / sqrt(abar); v_prediction (Salimans and Ho, arXiv
    2202.00512, appendix D): x_0 = sqrt(abar) x - sqrt(1 - abar) v.
    """
    signal, noise = np.sqrt(abar), np.sqrt(1 - abar)
    if config.prediction_type == "sample":
        x0 = output
    elif config.prediction_type == "v_prediction":
        x0 = signal * x - noise * output
    else:
        if signal == 0:
            raise _no_signal()
        x0 = (x - noise * output) / signal
    if config.thresholding:
        return _threshold(config, x0)
    if config.clip_sample:
        return np.clip(x0, -config.clip_sample_range, config.clip_sample_range)
    return x0


def predicted_epsilon(
    config: SchedulerConfig, output: Float32Array, x: Float32Array, abar: np.float32
) -> Float32Array:
    """Return the noise implied by the network's `output`, before any clipping of x_0."""
    signal, noise = np.sqrt(abar), np.sqrt(1 - abar)
    if config.prediction_type == "epsilon":
        return output
    if config.prediction_type == "v_prediction":
        epsilon: Float32Array = signal * output + noise * x
        return epsilon
    return np.asarray((x - signal * output) / noise)


def _threshold(config: SchedulerConfig, x0: Float32Array) -> Float32Array:
    """Clip each image to its own percentile s >= 1 and divide by s: Saharia et al., arXiv 2205.11487."""
    flat = x0.reshape(len(x0), -1)
    s = np.quantile(np.abs(flat), config.dynamic_thresholding_ratio, axis=1, keepdims=True)
    s = np.clip(s, 1, config.sample_max_value).astype(np.float32)
    return np.asarray(np.clip(flat, -s, s) / s).reshape(x0.shape)


def _no_signal() -> EngineError:
    return EngineError(
        "scheduler configuration",
        got="epsilon prediction at a timestep without any signal (rescale_betas_zero_snr)",
        expected="v_prediction or sample prediction there",
        remedy="Set timestep_spacing to leading, or use the configuration that the network was trained with",
    )
