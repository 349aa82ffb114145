"""Noise schedules: how much signal is left at each training timestep."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from accuquant.runtime.scheduler_config import SchedulerConfig

Float32Array = npt.NDArray[np.float32]


def alphas_cumprod(config: SchedulerConfig) -> Float32Array:
    """Return abar_t = prod_{s <= t} (1 - beta_s), float32 [num_train_timesteps].

    Notation of Ho et al., "Denoising Diffusion Probabilistic Models", arXiv 2006.11239, section 2.
    """
    betas = _betas(config)
    if config.rescale_betas_zero_snr:
        betas = _rescale_zero_terminal_snr(betas)
    return _cumprod(np.float32(1) - betas)


def _betas(config: SchedulerConfig) -> Float32Array:
    if config.trained_betas is not None:
        return np.array(config.trained_betas, np.float32)
    start, end, count = config.beta_start, config.beta_end, config.num_train_timesteps
    if config.beta_schedule == "linear":
        return _linspace(start, end, count)
    if config.beta_schedule == "scaled_linear":
        betas: Float32Array = _linspace(start**0.5, end**0.5, count) ** 2
        return betas
    if config.beta_schedule == "sigmoid":
        logits = _linspace(-6, 6, count)
        return np.asarray((end - start) / (1 + np.exp(-logits)) + start, np.float32)
    signal = _cosine_signal if config.beta_schedule == "squaredcos_cap_v2" else _laplace_signal
    ratios = [signal((i + 1) / count) / signal(i / count) for i in range(count)]
    return np.array([min(1 - ratio, 0.999) for ratio in ratios], np.float32)


def _cosine_signal(u: float) -> float:
    """abar(u), u in [0, 1]: Nichol and Dhariwal, arXiv 2102.09672, equation 17."""
    return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace_signal(u: float) -> float:
    """abar(u), u in [0, 1]: Hang et al., arXiv 2407.03297, table 1, as diffusers evaluates it."""
    log_snr = -0.5 * math.copysign(1, 0.5 - u) * math.log(1 - 2 * math.fabs(0.5 - u) + 1e-6)
    snr = math.exp(log_snr)
    return math.sqrt(snr / (1 + snr))


def _rescale_zero_terminal_snr(betas: Float32Array) -> Float32Array:
    """Shift and scale sqrt(abar) so that it ends at 0: Lin et al., arXiv 2305.08891, algorithm 1."""
    root = np.sqrt(_cumprod(np.float32(1) - betas))
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))
    abar = root**2
    alphas = np.concatenate([abar[:1], abar[1:] / abar[:-1]])
    return np.asarray(1 - alphas, np.float32)


def _linspace(start: float, end: float, count: int) -> Float32Array:
    return np.linspace(start, end, count, dtype=np.float32)


def _cumprod(values: Float32Array) -> Float32Array:
    # torch.cumprod keeps its running product in double precision.
    return np.cumprod(values, dtype=np.float64).astype(np.float32)
