"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from accuquant._util.files import check_new_file, check_new_folder, check_new_path

Function = TypeVar("Function", bound=Callable[..., Any])
#: The names that accuquant.runtime.open_runner knows; spelled out so that --help loads no engine.
ENGINES = (
    "openvino",
    "openvino-gpu",
    "openvino-npu",
    "onnxruntime",
    "onnxruntime-cuda",
    "onnxruntime-tensorrt",
    "onnxruntime-openvino",
    "tensorrt",
)


class LocalPath(click.Path):
    """A path whose `~` is the home folder: in a --config file no shell expands it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        return super().convert(_expanded(value), param, ctx)


class NewPath(LocalPath):
    """A path that will be written, checked before the work whose result goes there; `-` is stdout."""

    def __init__(self, check: Callable[[str, Path], None], **options: Any) -> None:
        super().__init__(path_type=Path, **options)
        self._check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path. Raises accuquant.errors.UsageError where nothing can be written to it."""
        path = super().convert(value, param, ctx)
        if not (self.allow_dash and str(path) == "-"):
            self._check(max(param.opts, key=len) if param else "path", path)
        return path


class Source(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.2
    """A folder, whose `~` is the home folder, or a Hub id."""

    name = "source"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        return str(_expanded(value))


class Numbers(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.2
    """Whole numbers of at least 1, separated by commas."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the numbers."""
        words = [word.strip() for word in str(value).split(",")]
        if not all(word.isdecimal() and int(word) for word in words):
            self.fail(f"'{value}' is no list of whole numbers such as 1,2,4.", param, ctx)
        return tuple(map(int, words))


def _expanded(value: Any) -> Any:
    return os.path.expanduser(value) if isinstance(value, str | os.PathLike) else value


existing_folder = LocalPath(exists=True, file_okay=False, path_type=Path)
existing_file = LocalPath(exists=True, dir_okay=False, path_type=Path)
existing_path = LocalPath(exists=True, path_type=Path)
new_file = NewPath(check_new_file)
new_folder = NewPath(check_new_folder)
new_path = NewPath(check_new_path)


class ExportedFolder(LocalPath):
    """A folder, or "user/name" or "user/name@revision" of the Hub, which is fetched."""

    name = "exported folder"

    def __init__(self, *, file_okay: bool = False) -> None:
        super().__init__(exists=True, file_okay=file_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path of the folder."""
        from accuquant.hub.fetch import local_folder

        return super().convert(local_folder(_expanded(value)), param, ctx)


exported_folder = ExportedFolder()


def engine_option(function: Function) -> Function:
    """Add --engine."""
    return click.option(
        "--engine",
        type=click.Choice(ENGINES),
        default="openvino",
        show_default=True,
        help="What runs the model.",
    )(function)


def engine_precision_option(function: Function) -> Function:
    """Add --engine-precision."""
    return click.option(
        "--engine-precision",
        type=click.Choice(("auto", "fp32", "bf16")),
        default="auto",
        show_default=True,
        help="What OpenVINO computes in around int8; auto takes bf16 where `accuquant verify` found on this "
        "machine that it is faster and keeps the images.",
    )(function)


def trust_option(function: Function) -> Function:
    """Add --trust-engines."""
    return click.option(
        "--trust-engines",
        is_flag=True,
        help="Run TensorRT engines that came with a download too; they are executable code.",
    )(function)


def lora_option(otherwise: str) -> Callable[[Function], Function]:
    """Return a decorator that adds --lora; `otherwise` says what happens without it."""
    return click.option(
        "--lora",
        "loras",
        type=Source(),
        multiple=True,
        metavar="PATH_OR_HUB_ID[:SCALE]",
        help=f"A LoRA to fuse into the weights, may be given several times; {otherwise}.",
    )


def device_option(function: Function) -> Function:
    """Add --device and --tf32."""
    function = click.option(
        "--tf32",
        is_flag=True,
        help="Let an NVIDIA GPU round products to TF32: faster, and the figures differ a little.",
    )(function)
    return click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="auto|cpu|cuda|cuda:N|mps",
        help="Where PyTorch computes; auto takes a GPU that works.",
    )(function)


def weights_options(function: Function) -> Function:
    """Add --weight-dtype and --offload."""
    function = click.option(
        "--offload",
        is_flag=True,
        help="Keep weights in the CPU's memory; each goes to the device when its layer runs.",
    )(function)
    return click.option(
        "--weight-dtype",
        type=click.Choice(("files", "float32")),
        default="files",
        show_default=True,
        help="How weights are held: in the type of their files, or widened; sums are float32 either way, and "
        "the figures the same. With --lora they are widened.",
    )(function)


def take_weights_options(options: dict[str, Any]) -> dict[str, bool]:
    """Take the two out of `options`, as load_source and Source.to have them: `as_stored` and `offload`."""
    return {
        "as_stored": options.pop("weight_dtype", "files") == "files",
        "offload": options.pop("offload", False),
    }


def steps_option(function: Function) -> Function:
    """Add --steps."""
    return click.option(
        "--steps", type=click.IntRange(min=1), show_default="as calibrated", help="Sampler steps an image."
    )(function)


def seed_option(default: int) -> Callable[[Function], Function]:
    """Return a decorator that adds --seed."""
    return click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=default,
        show_default=True,
        help="Image k starts from this seed plus k.",
    )


def num_images_option(default: int) -> Callable[[Function], Function]:
    """Return a decorator that adds --num-images."""
    return click.option(
        "--num-images",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        help="Number of images.",
    )


class ClassLabels(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.2
    """Whole numbers, separated by commas."""

    name = "class labels"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the numbers."""
        labels = [label.strip() for label in str(value).split(",")]
        if not all(label.isdecimal() for label in labels):
            self.fail(f"'{value}' is no list of whole numbers such as 3,5,7.", param, ctx)
        return tuple(map(int, labels))


def class_labels_option(function: Function) -> Function:
    """Add --class-labels."""
    return click.option(
        "--class-labels",
        type=ClassLabels(),
        metavar="N,N,...",
        show_default="every class in turn",
        help="The classes of the images, from the first again where there are fewer.",
    )(function)
