"""What runs the text encoders and the decoder of a pipeline: its engine, or torch."""

from __future__ import annotations

from typing import Literal

from accuquant.errors import UsageError, unknown_name

#: "auto" takes the engine where nothing speaks against it.
Parts = Literal["auto", "engine", "torch"]
CHOICES = ("auto", "engine", "torch")
#: The engines that read the graphs of float parts, or what `accuquant build` made of them.
ENGINES = ("openvino", "onnxruntime", "tensorrt")
#: Where engines have to be built first, and the parts run fast in torch too.
_ASKED_FOR = ("tensorrt",)


def runs_on_engine(parts: Parts, *, held: bool, engine: str, named: bool, device: str) -> bool:
    """Say whether text encoders and decoder run in the engine.

    `held` says that the exported folder holds them, `named` that the user names a pipeline or a variant, and
    `device` is where torch would run them: a GPU is faster there than the engine on the CPU. Raises
    UsageError for a choice that is unknown or cannot be had.
    """
    if parts not in CHOICES:
        raise unknown_name("parts", str(parts), CHOICES)
    if parts == "auto":
        asked = engine in _ASKED_FOR
        return held and not named and device == "cpu" and engine in ENGINES and not asked
    if parts == "torch":
        return False
    for wrong, got, expected, remedy in (
        (engine not in ENGINES, f"--engine {engine}", " or ".join(ENGINES), "Choose another --engine"),
        (named, "--pipeline or --variant as well", "one of the two", "Leave one of them out"),
    ):
        if wrong:
            raise UsageError(
                "--parts engine", got=got, expected=expected, remedy=f"{remedy}, or --parts torch"
            )
    return True
