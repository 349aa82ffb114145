"""What layers see on a calibration set: the range of every call, and values drawn evenly from all calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from accuquant.errors import CalibrationError
from accuquant.networks.network import watching_inputs

from .calibration_set import Pick, run_all, sizes_of
from .method import Run

#: Values that are kept of each layer: with 0.01 % of them clipped at either end, 13 decide.
VALUES = 131_072
_LEAST = 64


@dataclass(frozen=True)
class Observed:
    """The inputs of one layer: `lows` and `highs` [calls], and a sample of `values` [N]."""

    lows: npt.NDArray[np.float32]
    highs: npt.NDArray[np.float32]
    values: npt.NDArray[np.float32]

    @property
    def with_extremes(self) -> npt.NDArray[np.float32]:
        """The sample, and the two extremes of all calls, once each."""
        ends = np.array([self.lows.min(), self.highs.max()], np.float32)
        return np.concatenate([self.values, ends])


class InputObserver:
    """Watches the inputs of layers; those that read one tensor (to_q, to_k, to_v) get one sample."""

    def __init__(self, names: Sequence[str], calls: int, seed: int) -> None:
        self._names, self._per_call = tuple(names), max(_LEAST, VALUES // max(1, calls))
        self._rng = torch.Generator().manual_seed(seed)
        self._kept: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
        self._last: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    @contextmanager
    def watch(self, network: nn.Module) -> Iterator[None]:
        """Observe every call of `network` in the block; raise CalibrationError where one is not finite."""
        modules = dict(network.named_modules())
        try:
            with watching_inputs({name: modules[name] for name in self._names}, self._see):
                yield
        finally:
            self._last = None

    def _see(self, name: str, x: Tensor) -> None:
        if self._last is None or self._last[0] is not x:
            flat = x.detach().reshape(-1)
            ends = torch.stack(flat.aminmax()).cpu()
            if not bool(torch.isfinite(ends).all()):
                raise CalibrationError(
                    f"layer '{name}'",
                    got="NaN or infinity among its inputs",
                    expected="finite values",
                    remedy="Sample with the pipeline itself: if its images are broken there too, change "
                    "scheduler, steps or size; nothing was written",
                )
            self._last = (x, (ends, self._draw(flat).cpu()))
        self._kept[name].append(self._last[1])

    def _draw(self, flat: Tensor) -> Tensor:
        if flat.numel() <= self._per_call:
            return flat.clone()
        picks = torch.randint(flat.numel(), (self._per_call,), generator=self._rng)
        return flat[picks.to(flat.device)]

    def observed(self) -> dict[str, Observed]:
        """Return what every layer saw."""
        return {
            name: Observed(
                lows=torch.stack([ends[0] for ends, _ in calls]).numpy(),
                highs=torch.stack([ends[1] for ends, _ in calls]).numpy(),
                values=torch.cat([values for _, values in calls]).numpy(),
            )
            for name, calls in self._kept.items()
        }


def observe(run: Run, picks: Sequence[Pick], network: nn.Module | None = None) -> dict[str, Observed]:
    """Return what the layers see when `network`, by default the float one, is called on `picks`."""
    watched = run.source.network if network is None else network
    observer = InputObserver(run.placement.quantized, len(picks), run.settings.seed)
    run.shown.stage("ranges of activations", len(picks))
    with observer.watch(watched):
        run_all(watched, run.process, run.batches, picks, run.shown.advance)
    return observer.observed()


def batch_sizes(run: Run) -> list[int]:
    """Return the number of trajectories in each batch of `run`."""
    return sizes_of(run.batches)
