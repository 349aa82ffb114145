"""What a verification runs."""

from __future__ import annotations

from dataclasses import dataclass

from accuquant.errors import UsageError


@dataclass(frozen=True)
class VerificationSettings:
    """Image k starts from seed + k; `features` is a name that `load_features` knows.

    `layers` compares the levels of every layer as well. `allow_other_scheduler` verifies with a
    scheduler that the recipe was not calibrated for.
    """

    engine: str = "openvino"
    num_images: int = 64
    steps: int = 50
    seed: int = 10_000
    batch_size: int = 16
    features: str = "auto"
    layers: bool = False
    allow_other_scheduler: bool = False

    def __post_init__(self) -> None:
        for name in ("num_images", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"--{name.replace('_', '-')}",
                    got=str(getattr(self, name)),
                    expected="an integer of at least 1",
                    remedy="Correct the option",
                )

    @property
    def num_batches(self) -> int:
        """How many batches there are."""
        return -(-self.num_images // self.batch_size)

    def images(self, batch: int) -> range:
        """Return the images of a batch."""
        first = batch * self.batch_size
        return range(first, min(first + self.batch_size, self.num_images))
