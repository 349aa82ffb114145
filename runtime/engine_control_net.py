"""A drop-in for `pipe.controlnet` in a diffusers pipeline that runs an exported engine."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, MultiControlNetModel
from diffusers.configuration_utils import FrozenDict
from diffusers.models.controlnets.controlnet import ControlNetOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from accuquant.errors import EngineError, UsageError
from accuquant.hub.fetch import local_folder
from accuquant.manifest import Manifest
from accuquant.networks.call_tensors import bound_arguments
from accuquant.networks.control_signature import CONTROL_NET, DOWN_OUT, MID_OUT, SCALE
from accuquant.networks.image_sides import check_sample
from accuquant.runtime.engine_call import call_engine, defaults_of, read_config, single_timestep
from accuquant.runtime.engine_model import EngineModel
from accuquant.runtime.fixed_network import FixedNetwork


class EngineControlNet(FixedNetwork, ControlNetModel):  # type: ignore[misc]  # diffusers leaves it untyped
    """An exported control network with the face of diffusers' ControlNetModel.

        pipe = StableDiffusionControlNetPipeline.from_pretrained(source)
        pipe.unet = EngineUNet.from_pretrained(folder)
        pipe.controlnet = EngineControlNet.from_pretrained(folder)

    It is a ControlNetModel because pipelines ask for one, without its weights. The scale of its residuals may
    change from step to step, as `control_guidance_end` makes it.
    """

    def __init__(self, model: EngineModel, config: Mapping[str, Any]) -> None:
        # that of ControlNetModel makes its layers
        ModelMixin.__init__(self)  # type: ignore[no-untyped-call]
        self.engine_model = model
        self._forward_signature = inspect.signature(ControlNetModel.forward)
        known = {**defaults_of(ControlNetModel), **config}
        self._config: Any = FrozenDict(known)  # type: ignore[no-untyped-call]
        # Follows pipe.to(device, dtype) as a weight would; accelerate's offloading asks for a parameter.
        self._anchor = nn.Parameter(torch.empty(0), requires_grad=False)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        engine: str = "openvino",
        *,
        revision: str | None = None,
        **options: Any,
    ) -> EngineControlNet | MultiControlNetModel:
        """Open an exported folder's control networks: one, or diffusers' MultiControlNetModel of several.

        `folder` is also one control network's own folder inside. `options` go to EngineModel.from_folder and
        the engine. Raises EngineError for a folder that holds none.
        """
        root = local_folder(folder, revision=revision)
        manifest = Manifest.load(root)
        if manifest.signature.architecture == CONTROL_NET:
            return cls._open(root, engine, options)
        if not manifest.controls:
            raise EngineError(
                f"folder '{root}'",
                got="no control network",
                expected="an export of a pipeline with control networks, whose layers the recipe has",
                remedy="Leave pipe.controlnet as it is: EngineUNet takes its residuals in float",
            )
        nets = [cls._open(place, engine, options) for place in manifest.control_folders(root)]
        return nets[0] if len(nets) == 1 else MultiControlNetModel(nets)

    @classmethod
    def _open(cls, folder: Path, engine: str, options: Mapping[str, Any]) -> EngineControlNet:
        model = EngineModel.from_folder(folder, engine, **options)
        return cls(model, read_config(ControlNetModel, model.manifest.config_path(folder)))

    @property
    def config(self) -> Any:
        """The original network's configuration, by attribute or by key."""
        return self._config

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the pipeline works in."""
        return self._anchor.dtype

    @property
    def device(self) -> torch.device:
        """The device that the pipeline works on; the engine has its own."""
        return self._anchor.device

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the residuals as the original network: a list for the skip connections, and the middle's.

        Raises UsageError for a timestep outside the calibrated range, for guess_mode, and for an argument
        that the exported graph has no input for.
        """
        arguments = bound_arguments(self._forward_signature, (self, *args), kwargs, type(self).__name__)
        del arguments["self"]
        return_dict, guess = arguments.pop("return_dict", True), arguments.pop("guess_mode", False)
        if guess:
            raise UsageError(
                "guess_mode",
                got="True",
                expected="False: the exported graph scales all residuals alike",
                remedy="Leave it out, or give the pipeline the float control network",
            )
        model = self.engine_model
        signature = model.manifest.signature
        sample, timestep = arguments.pop("sample"), single_timestep(arguments.pop("timestep"))
        check_sample(signature, self._config, sample.shape)
        scale = torch.as_tensor(arguments.pop(SCALE, 1.0), dtype=torch.float32).reshape(1)
        found = call_engine(
            model, sample, timestep, {**self._given(arguments), SCALE: scale.to(sample.device)}, ()
        )
        down: Any = tuple(found[f"{DOWN_OUT}_{k}"] for k in range(len(found) - 1))
        if not return_dict:
            return list(down), found[MID_OUT]
        return ControlNetOutput(down_block_res_samples=down, mid_block_res_sample=found[MID_OUT])

    def _given(self, arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        names = [spec.name for spec in self.engine_model.manifest.signature.conditioning]
        flat = {**arguments, **(arguments.get("added_cond_kwargs") or {})}
        flat.pop("added_cond_kwargs", None)
        given = {name: value for name, value in flat.items() if value is not None and value != {}}
        unknown = [name for name in given if name not in names]
        if unknown:
            raise UsageError(
                f"argument '{unknown[0]}'",
                got="a value",
                expected=f"None; the exported graph takes {', '.join(names)}",
                remedy="Leave it out, or give the pipeline the float control network",
            )
        return given

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: the engine holds no weights that diffusers could store."""
        raise UsageError(
            "EngineControlNet.save_pretrained",
            got="a compiled engine",
            expected="the exported folder itself",
            remedy="Copy the exported folder",
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> EngineControlNet:
        """Refuse: an engine and its memory cannot be copied."""
        raise UsageError(
            "copy.deepcopy(EngineControlNet)",
            got="a compiled engine",
            expected="one EngineControlNet that pipelines share, or a second one from the folder",
            remedy="Call EngineControlNet.from_pretrained(folder) again",
        )
