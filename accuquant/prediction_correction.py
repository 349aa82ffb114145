"""What a sampler's step takes off a quantized network's prediction: a factor and a bias for every step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from accuquant.errors import RecipeError
from accuquant.groups import StepGroups


@dataclass(frozen=True)
class PredictionCorrection:
    """The correlated part and the bias of a prediction's quantization error, by step and channel.

    In step s, a range of timesteps of `steps`, the prediction becomes (prediction - bias[s]) * factor[s];
    `factor` and `bias` are float32 [S, C]. PTQD (He et al., arXiv 2305.10657, equations 8 to 11): with
    eps_q = (1 + k) eps + b + rest, factor is 1 / (1 + k). Channels are the axis behind the batch, or the last
    one of packed patches [B, N, C].
    """

    steps: StepGroups
    factor: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        for name, values in (("factor", self.factor), ("bias", self.bias)):
            wanted = values.ndim == 2 and values.shape[0] == len(self.steps) and values.shape[1] > 0
            if not wanted or values.shape != self.factor.shape or values.dtype != np.float32:
                self._refuse(
                    f"a {name} of type {values.dtype} and shape {values.shape}",
                    f"float32 [{len(self.steps)}, channels]",
                )
            if not np.isfinite(values).all():
                self._refuse(f"a {name} that is not finite", "finite numbers")
        if not (self.factor > 0).all():
            self._refuse(f"a factor of {self.factor.min():g}", "factors above 0")

    def along(self, rank: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return factor and bias [S, ...] that broadcast against a prediction of `rank` axes."""
        shape = (len(self.steps), 1, -1) if rank == 3 else (len(self.steps), -1, *[1] * (rank - 2))
        return self.factor.reshape(shape), self.bias.reshape(shape)

    @staticmethod
    def _refuse(got: str, expected: str) -> None:
        raise RecipeError(
            "correction of the prediction",
            got=got,
            expected=expected,
            remedy="The file is damaged or was edited. Run `accuquant calibrate` again",
        )
