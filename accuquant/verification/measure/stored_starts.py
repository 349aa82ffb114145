"""Starts on disk, made once, while the text encoders are in memory; or made by whoever wants them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save

from accuquant.denoising.start import Start
from accuquant.pipelines.starts import Starter
from accuquant.units.per_worker import PerWorker
from accuquant.verification.verification_settings import VerificationSettings


class StoredStarts:
    """The starts of a run, in files of `folder`, one a batch; each iteration reads them again.

    The embedded prompts of one image take 0.5 MB (Stable Diffusion 1.5) to 11 MB (SD3): thousands of images
    would fill the memory that the networks need.
    """

    def __init__(self, folder: Path, starts: Iterable[Start]) -> None:
        """Write `starts`, which may come one at a time. Raises OSError where the disk is full."""
        self._files: list[Path] = []
        for number, start in enumerate(starts):
            path = folder / f"start-{number:06d}.safetensors"
            # safetensors takes no two tensors that share memory
            path.write_bytes(save({name: t.clone().contiguous() for name, t in start.to_tensors().items()}))
            self._files.append(path)

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Start]:
        return map(self._read, self._files)

    def batch(self, number: int) -> Start:
        """Return the start of a batch."""
        return self._read(self._files[number])

    @staticmethod
    def _read(path: Path) -> Start:
        return Start.from_tensors(load_file(path))


@dataclass(frozen=True)
class MadeStarts:
    """The starts of a run, which each process makes with a starter of its own: the `first` alone travels."""

    starter: PerWorker[Starter]
    settings: VerificationSettings
    first: Start

    def batch(self, number: int) -> Start:
        """Return the start of a batch."""
        if number == 0:
            return self.first
        return self.starter.get().start(self.settings.images(number), seed=self.settings.seed)
