"""What an evaluation runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from accuquant.errors import UsageError
from accuquant.verification.measure.weights_files import NONE, check_names

from .metrics import METRICS, check_metrics

DEFAULT_METRICS = ("fid2fp32", "psnr", "ssim")


@dataclass(frozen=True)
class EvaluationSettings:
    """Image k starts from seed + k, with prompt k and label k, from the first again where there are fewer.

    `shard_size` images are a unit of work: what a kill costs at most. `real` is a folder of images or an
    .npz with images or statistics. `against` is another export of the same pipeline. `keep_images` is a
    folder for all images as PNG. `resamples` draws make an interval, repeatably. `weights` says where the
    weights of a metric's network lie.
    """

    metrics: tuple[str, ...] = DEFAULT_METRICS
    num_images: int = 50_000
    seed: int = 10_000
    batch_size: int = 16
    shard_size: int = 256
    engine: str = "openvino"
    engine_precision: str = "auto"
    trust_engines: bool = False
    allow_other_scheduler: bool = False
    features: str = "auto"
    real: Path | None = None
    against: Path | None = None
    class_labels: tuple[int, ...] | None = None
    keep_images: Path | None = None
    resamples: int = 200
    weights: Mapping[str, Path] = field(default_factory=lambda: NONE)

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", check_metrics(self.metrics))
        check_names(self.weights)
        for name, least in (("num_images", 1), ("batch_size", 1), ("shard_size", 1), ("resamples", 20)):
            if getattr(self, name) < least:
                raise UsageError(
                    f"--{name.replace('_', '-')}",
                    got=str(getattr(self, name)),
                    expected=f"an integer of at least {least}",
                    remedy="Correct the option",
                )
        self._check_real()
        distances = [name for name in self.metrics if METRICS[name].output is not None]
        if distances and self.num_images < 2:
            raise UsageError(
                f"--metrics {','.join(distances)}",
                got="one image",
                expected="at least two: these metrics compare sets",
                remedy="Give --num-images",
            )

    def _check_real(self) -> None:
        wanted = [name for name in self.metrics if METRICS[name].real]
        if wanted and self.real is None:
            raise UsageError(
                f"--metrics {','.join(wanted)}",
                got="no real images",
                expected="--real FOLDER with images, or --real FILE.npz with images or their statistics",
                remedy="Give --real, or leave these metrics out",
            )
        if self.real is not None and not wanted:
            raise UsageError(
                "--real",
                got=f"metrics that need no real images ({', '.join(self.metrics)})",
                expected="fid, sfid or precision among --metrics",
                remedy="Add one of them, or leave --real out",
            )

    @property
    def units(self) -> tuple[str, ...]:
        """The names of the shards: the range of images of each."""
        return tuple(
            unit_name(first, min(first + self.shard_size, self.num_images))
            for first in range(0, self.num_images, self.shard_size)
        )


def unit_name(first: int, stop: int) -> str:
    """Return the name of a shard."""
    return f"{first:08d}-{stop:08d}"


def members(unit: str) -> range:
    """Return the images of a shard."""
    first, stop = unit.split("-")
    return range(int(first), int(stop))
