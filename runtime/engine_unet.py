"""A drop-in for `pipe.unet` or `pipe.transformer` in a diffusers pipeline that runs an exported engine."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.embeddings import ImageProjection
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn

from accuquant.errors import EngineError, UsageError
from accuquant.hub.fetch import local_folder
from accuquant.manifest import Manifest
from accuquant.networks.architectures import SUPPORTED
from accuquant.networks.call_form import CallForm
from accuquant.networks.call_tensors import bound_arguments, tensors_of_call
from accuquant.networks.image_sides import check_sample
from accuquant.networks.signature import Signature, TensorSpec
from accuquant.runtime.engine_call import call_engine, defaults_of, read_config, single_timestep
from accuquant.runtime.engine_model import EngineModel
from accuquant.runtime.fixed_network import FixedNetwork

#: Transformers have one class of output.
_OUTPUTS = {"UNet2DModel": UNet2DOutput, "UNet2DConditionModel": UNet2DConditionOutput}


class EngineUNet(FixedNetwork, ModelMixin):
    """The exported network with the face of the diffusers class that it came from.

        pipe = DiffusionPipeline.from_pretrained(source)
        pipe.unet = EngineUNet.from_pretrained(folder)

    It is a ModelMixin so that `DiffusionPipeline.from_pretrained(source, unet=...)` takes it too.
    `config`, `dtype`, `device` and the call signature are the original's. The engine computes in its
    own precision on its own device; tensors are converted on the way in and out.
    """

    def __init__(self, model: EngineModel, config: Mapping[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        original = _original(model.manifest)
        self.engine_model = model
        self._output = _OUTPUTS.get(original.__name__, Transformer2DModelOutput)
        self._forward_signature = inspect.signature(original.forward)
        self._conditioning_specs = {spec.name: spec for spec in model.manifest.signature.conditioning}
        self._config: Any = FrozenDict({**defaults_of(original), **config})  # type: ignore[no-untyped-call]
        # Follows pipe.to(device, dtype) as a weight would; accelerate's offloading asks for a parameter.
        self._anchor = nn.Parameter(torch.empty(0), requires_grad=False)
        embeds = [s for name, s in self._conditioning_specs.items() if name.startswith("image_embeds_")]
        if embeds:
            self.encoder_hid_proj = _image_projections(embeds)
        width = self._config.get("projection_class_embeddings_input_dim")
        # SDXL pipelines ask the network for this extent before they build time_ids.
        self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=width))
        # Z-Image's and HunyuanDiT's pipelines ask the network itself for these.
        heads, width = (self._config.get(name) for name in ("num_attention_heads", "attention_head_dim"))
        self.in_channels, self.num_heads = self._config.get("in_channels"), heads
        self.inner_dim = heads * width if isinstance(heads, int) and isinstance(width, int) else None

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        folder: str | os.PathLike[str],
        engine: str = "openvino",
        *,
        revision: str | None = None,
        **options: Any,
    ) -> EngineUNet:
        """Open an exported folder, or one on the Hub ("user/name", or "user/name@revision").

        `revision` is a branch, a tag or a commit of the Hub's repository; only a commit stays what it is.
        `options` go to EngineModel.from_folder and the engine.
        Raises EngineError for a folder that is damaged, UsageError for an unknown engine or option.
        """
        root = local_folder(folder, revision=revision)
        model = EngineModel.from_folder(root, engine, **options)
        return cls(model, read_config(_original(model.manifest), model.manifest.config_path(root)))

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
        """Predict as the original network: the same arguments, the same output class.

        The output has the dtype and device of the sample. Raises UsageError for a timestep outside the
        calibrated range or an argument that the exported graph has no input for.
        """
        signature = self.engine_model.manifest.signature
        arguments = bound_arguments(self._forward_signature, (self, *args), kwargs, signature.architecture)
        arguments.pop("self")
        if signature.call is not None:
            return self._forward_as_seen(signature, signature.call, arguments)
        sample, timestep = arguments.pop(signature.sample.name), arguments.pop("timestep")
        check_sample(signature, self._config, sample.shape)
        return_dict = arguments.pop("return_dict", True)
        value = single_timestep(timestep) * signature.timestep_divisor
        output = self._predict(sample, value, self._conditioning(arguments))
        return self._output(sample=output) if return_dict else (output,)

    def _forward_as_seen(self, signature: Signature, form: CallForm, arguments: dict[str, Any]) -> Any:
        """Predict as a network that is called as its pipeline was seen to call it."""
        tensors = tensors_of_call(form, arguments)
        value = form.graph_timestep(single_timestep(tensors.pop(signature.timestep.name)))
        sample = tensors.pop(signature.sample.name)
        check_sample(signature, self._config, sample.shape)
        output = self._predict(sample, value * signature.timestep_divisor, tensors)
        if form.output.path == ("sample",):
            return self._output(sample=form.output.dressed(output))
        return form.returned(output)

    def _predict(
        self, sample: torch.Tensor, timestep: float, conditioning: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Return the prediction at the scheduler's `timestep` with the sample's type and device."""
        name = self.engine_model.manifest.signature.output.name
        return call_engine(self.engine_model, sample, timestep, conditioning, (name,))[name]

    @contextmanager
    def cache_context(self, name: str, **facts: Any) -> Iterator[None]:
        """Do nothing: transformer pipelines name their calls, for caches that an engine does not have.

        `facts` are what the caches of some pipelines (Wan) are told of the step.
        """
        yield

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: the engine holds no weights that diffusers could store."""
        raise UsageError(
            "EngineUNet.save_pretrained",
            got="a compiled engine",
            expected="the exported folder itself",
            remedy="Copy the exported folder",
        )

    def load_lora_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: the weights are int8 levels, to which nothing can be added."""
        raise UsageError(
            "EngineUNet.load_lora_adapter",
            got="a LoRA for a compiled engine",
            expected="a LoRA that was fused before the weights were quantized",
            remedy="Give it to `accuquant calibrate --lora`, and export again",
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> EngineUNet:
        """Refuse: an engine and its memory cannot be copied."""
        raise UsageError(
            "copy.deepcopy(EngineUNet)",
            got="a compiled engine",
            expected="one EngineUNet that pipelines share, or a second one from the folder",
            remedy="Call EngineUNet.from_pretrained(folder) again",
        )

    def _conditioning(self, arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return what conditions the network, by the graph's names. Raises UsageError for anything else."""
        given = {**arguments, **(arguments.get("added_cond_kwargs") or {})}
        given.pop("added_cond_kwargs", None)
        tensors = {}
        for name, value in given.items():
            if value is None or (isinstance(value, dict) and not value):  # torch compares == slowly
                continue
            if name not in self._conditioning_specs:
                raise UsageError(
                    f"argument '{name}'",
                    got="a value",
                    expected=f"None; the exported graph takes {_listed(self._conditioning_specs)}",
                    remedy="Leave it out, or run the step that needs it with the float network",
                )
            tensors[name] = value
        return tensors


def _original(manifest: Manifest) -> Any:
    architecture = manifest.signature.architecture
    if manifest.signature.call is None and architecture not in SUPPORTED:
        raise EngineError(
            f"network {architecture}",
            got="an architecture without a drop-in",
            expected=" or ".join(SUPPORTED),
            remedy="Call EngineModel instead",
        )
    found = getattr(diffusers, architecture, None)
    if not (isinstance(found, type) and issubclass(found, ModelMixin)):
        raise EngineError(
            f"network {architecture}",
            got="a class that the installed diffusers does not have",
            expected="a network of diffusers, whose arguments and configuration the drop-in takes over",
            remedy="Upgrade diffusers, or call EngineModel instead",
        )
    return found


def _image_projections(embeds: Sequence[TensorSpec]) -> SimpleNamespace:
    """Return what a pipeline looks up before it encodes images: the number and the kind of IP-Adapters.

    An ImageProjection takes an image's embedding [B, N, D], others the encoder's hidden states.
    """
    pooled = ImageProjection(1, 1, 1)
    return SimpleNamespace(
        image_projection_layers=[pooled if len(spec.shape) == 3 else nn.Identity() for spec in embeds]
    )


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names) or "no conditioning"
