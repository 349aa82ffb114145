"""How a pipeline's folder is read: which files of weights, and which parts are left out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuquant.calibration_facts import LoadingFacts
from accuquant.errors import SourceError, UsageError

#: What diffusers and transformers call a part's weights; a shard's number stands before or after the variant.
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:-\d+-of-\d+)?(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
)


@dataclass(frozen=True)
class Loading:
    """The variant of the weights' files, such as fp16, the parts that are left out, and what is elsewhere.

    `Loading("fp16", ("text_encoder_3",))` reads what `save_pretrained(variant="fp16")` wrote of an SD 3
    pipeline without its T5. `network` is a folder or file whose network takes the place of the pipeline's
    own, `pipeline_config` a folder that says what pipeline a single file of weights is. With `allow_pickle`
    files that are pickles are read too, of which tensors and numbers alone are taken. `controlnets` are
    folders or Hub ids of control networks that are put beside the pipeline's UNet, `ip_adapters` files of
    IP-Adapters ("FILE[:SCALE]") that are put into it.
    """

    variant: str | None = None
    without: tuple[str, ...] = ()
    network: str | None = None
    pipeline_config: str | None = None
    allow_pickle: bool = False
    controlnets: tuple[str, ...] = ()
    ip_adapters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option, name in (("variant", self.variant or "fp16"), *(("without", n) for n in self.without)):
            if re.fullmatch(r"\w+", name) is None:
                raise UsageError(
                    f"--{option} '{name}'",
                    got="a name with other characters",
                    expected="letters, digits and underscores alone",
                    remedy=f"Give --{option} a name such as "
                    + ("fp16" if option == "variant" else "text_encoder_3"),
                )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values for a recipe."""
        places = {
            "network": self.network,
            "pipeline_config": self.pipeline_config,
            "controlnets": list(self.controlnets) or None,
            "ip_adapters": list(self.ip_adapters) or None,
        }
        found = {name: place for name, place in places.items() if place is not None}
        return {"variant": self.variant, "without": list(self.without), **found}

    def or_recorded(self, recorded: LoadingFacts) -> Loading:
        """Fill what was not chosen with what a recipe was calibrated with."""
        return Loading(
            self.variant or recorded.variant,
            self.without or recorded.without,
            self.network or recorded.network,
            self.pipeline_config or recorded.pipeline_config,
            self.allow_pickle,
            self.controlnets or recorded.controlnets,
            self.ip_adapters or recorded.ip_adapters,
        )

    def nothing_for_left_out(self) -> dict[str, None]:
        """Return the arguments that make diffusers leave parts out: tokenizers go with their encoders."""
        tokenizers = [name.replace("text_encoder", "tokenizer") for name in self.without]
        return dict.fromkeys((*self.without, *tokenizers))


def weight_files(folder: Path) -> dict[Path, str | None]:
    """Return the files of a part's weights and the variant of each, None where it has none."""
    found = {path: _WEIGHTS.fullmatch(path.name) for path in sorted(folder.glob("*"))}
    return {path: match["variant"] for path, match in found.items() if match}


def variant_of(folder: Path, loading: Loading, *, required: bool = False) -> str | None:
    """Return which variant of a part's weights to load: the one that was chosen, where the part has it.

    Raises SourceError where the part has neither that variant nor plain files, and where it is `required`
    and not there. A part without any weights is not judged here.
    """
    variants = set(weight_files(folder).values())
    if not variants or loading.variant in variants:
        return loading.variant if variants else None
    if None in variants and not required:
        return None
    named = sorted(name for name in variants if name is not None)
    plain = ["weights without a variant"] if None in variants else []
    raise SourceError(
        f"'{folder}'",
        got=" and ".join([*plain, *(f"weights of the variant '{name}'" for name in named)]),
        expected=f"weights of the variant '{loading.variant}'"
        if loading.variant
        else "weights without a variant",
        remedy=f"Give --variant {named[0]}" if named else "Leave --variant out",
    )
