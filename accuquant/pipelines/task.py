"""What the user samples with a pipeline: prompts, images, guidance. Seeds otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accuquant.calibration_facts import TaskFacts
from accuquant.errors import RecipeError, UsageError
from accuquant.pipelines.prompt_file import read_prompts

_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
#: Images with a tuple for each network that reads them.
_OF_ADAPTERS = ("control_images", "ip_adapter_images")
#: name -> (lowest, highest) value
_RANGES = {
    "guidance_scale": (0.0, 1000.0),
    "true_cfg_scale": (0.0, 1000.0),
    "image_guidance_scale": (0.0, 1000.0),
    "guidance_rescale": (0.0, 1.0),
    "strength": (0.01, 1.0),
    "image_size": (8, 65536),
    "control_scale": (0.0, 1000.0),
    "num_frames": (1, 65536),
}


@dataclass(frozen=True)
class Task:
    """What a pipeline is asked for; None leaves the choice to the pipeline's own default.

    Image k takes prompt k, image k and mask k, counted from the start again where there are fewer.
    `image_size` is the side of a square image in pixels, or width and height; `num_frames` are those of a
    video. `control_images` has a tuple of images for each control network, and `control_scale` what its
    residuals are multiplied by: one number for all, or one for each. `ip_adapter_images` has a tuple of
    images for each IP-Adapter.
    """

    prompts: tuple[str, ...] = ()
    negative_prompt: str | None = None
    images: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    image_guidance_scale: float | None = None
    guidance_rescale: float | None = None
    strength: float | None = None
    image_size: int | tuple[int, int] | None = None
    control_images: tuple[tuple[str, ...], ...] = ()
    control_scale: tuple[float, ...] | None = None
    ip_adapter_images: tuple[tuple[str, ...], ...] = ()
    num_frames: int | None = None

    def __post_init__(self) -> None:
        for name in ("prompts", "images", "masks"):
            if isinstance(getattr(self, name), str):
                raise UsageError(
                    f"Task.{name}",
                    got="one text",
                    expected="a tuple of texts",
                    remedy=f"Write Task({name}=(text,))",
                )
        for name in ("control_images", "ip_adapter_images"):
            if any(isinstance(paths, str) for paths in getattr(self, name)):
                raise UsageError(
                    f"Task.{name}",
                    got="texts",
                    expected="a tuple of paths for each network that reads them",
                    remedy=f"Write Task({name}=((path, path),))",
                )
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and not low <= number <= high:
                    raise UsageError(
                        option(name),
                        got=f"{number:g}",
                        expected=f"a value from {low:g} to {high:g}",
                        remedy="Give a value in that range",
                    )

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of an image in pixels, where they were chosen."""
        square = isinstance(self.image_size, int)
        return (self.image_size, self.image_size) if square else self.image_size  # type: ignore[return-value]

    @classmethod
    def read(
        cls,
        *,
        prompts: Path | None = None,
        images: Path | None = None,
        masks: Path | None = None,
        control_images: Sequence[Path] = (),
        ip_adapter_images: Sequence[Path] = (),
        **choices: Any,
    ) -> Task:
        """Read the prompts of a file (text, JSON, COCO captions), and list the images of folders.

        `control_images` are a folder for each control network, `ip_adapter_images` one for each IP-Adapter.

        Raises UsageError for a file without a prompt and a folder without an image.
        """
        return cls(
            prompts=() if prompts is None else read_prompts(prompts),
            images=() if images is None else _list_images("--images", images),
            masks=() if masks is None else _list_images("--masks", masks),
            control_images=tuple(_list_images("--control-images", folder) for folder in control_images),
            ip_adapter_images=tuple(
                _list_images("--ip-adapter-images", folder) for folder in ip_adapter_images
            ),
            **choices,
        )

    def given(self) -> list[str]:
        """Return the names of what was chosen."""
        return [name for name, value in asdict(self).items() if value not in (None, ())]

    def to_dict(self) -> dict[str, Any]:
        """Return the task as JSON values: of prompts, images and masks their number and a digest."""
        values = asdict(self)
        values["prompts"] = _summary(text.encode() for text in self.prompts)
        values["images"] = _summary(Path(path).read_bytes() for path in self.images)
        values["masks"] = _summary(Path(path).read_bytes() for path in self.masks)
        for name in _OF_ADAPTERS:
            paths = [path for paths in getattr(self, name) for path in paths]
            values[name] = _summary(Path(path).read_bytes() for path in paths)
        # what other pipelines are asked for stays as it was
        left = {name for name in (*_OF_ADAPTERS, "control_scale") if values[name] is None}
        return {name: value for name, value in values.items() if name not in left}

    def with_defaults(self, recorded: TaskFacts) -> Task:
        """Fill what was not chosen with the recorded numbers and negative prompt.

        Raises UsageError where that task had images or masks and this one has none, RecipeError for a
        recorded number that no task can have.
        """
        names = ("negative_prompt", *_RANGES)
        numbers = {name: getattr(recorded, name) for name in names}
        try:
            Task(**numbers)
        except UsageError as fault:
            raise RecipeError(
                "recipe, calibration.task",
                got=f"{fault.subject} {fault.got}",
                expected=fault.expected,
                remedy="The file is damaged. Run `accuquant calibrate` again",
            ) from fault
        for kind in ("images", "masks", *_OF_ADAPTERS):
            if getattr(recorded, kind) and not getattr(self, kind):
                raise UsageError(
                    option(kind),
                    got="none",
                    expected=f"{kind}: it was calibrated with some",
                    remedy=f"Give {option(kind)}",
                )
        chosen = {name: getattr(self, name) for name in names}
        filled = {name: numbers[name] if value is None else value for name, value in chosen.items()}
        return replace(self, **filled)


def option(name: str) -> str:
    """Return how the command line spells a choice."""
    return f"--{name.replace('_', '-')}"


def _list_images(name: str, folder: Path) -> tuple[str, ...]:
    files = (path for path in folder.iterdir() if path.is_file())
    found = sorted(str(path) for path in files if path.suffix.lower() in _IMAGES)
    if not found:
        raise UsageError(
            f"{name} '{folder}'",
            got="no image",
            expected=f"files that end in {', '.join(_IMAGES)}",
            remedy="Put some of the images that you work on into it",
        )
    return tuple(found)


def _summary(items: Iterable[bytes]) -> dict[str, Any] | None:
    digest, count = hashlib.sha256(), 0
    for item in items:
        digest.update(hashlib.sha256(item).digest())
        count += 1
    return {"count": count, "sha256": digest.hexdigest()} if count else None
