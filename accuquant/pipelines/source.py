"""Load a diffusers pipeline, from a folder or the Hub, as the parts that AccuQuant works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accuquant.errors import SourceError, UsageError
from accuquant.hub.repository import Repository
from accuquant.manifest import FEED_FORWARD
from accuquant.networks.controlled import ControlledNetwork, controlled
from accuquant.networks.image_sides import side_multiple
from accuquant.networks.network import model_hash, remember_call, signature_of
from accuquant.networks.signature import Signature, Uncaptured
from accuquant.networks.stored_weights import compute_in_float32, named_weights
from accuquant.networks.stored_weights import offload as offload_weights
from accuquant.pipelines.config_limits import check_numbers
from accuquant.pipelines.control_networks import CONTROLNET, controlled_class, load_controls
from accuquant.pipelines.diffusers_internals import check_version
from accuquant.pipelines.feed_forward import (
    COMPONENT,
    check_loading,
    is_feed_forward,
    read_feed_forward,
    write_feed_forward,
)
from accuquant.pipelines.fuse_lora import fuse_into_network
from accuquant.pipelines.half_storage import half_type_of_part
from accuquant.pipelines.image_adapters import put_into
from accuquant.pipelines.loading import Loading, variant_of
from accuquant.pipelines.look_alikes import check_file, check_folder, check_part
from accuquant.pipelines.lora import Lora
from accuquant.pipelines.model_index import check_classes, corrupt, diffusers_class, read_index
from accuquant.pipelines.single_file import folder_of_file, is_single_file
from accuquant.pipelines.swapped_network import load_swapped

_CONFIGS = ("config.json", "scheduler_config.json")
#: Pipelines whose UNet gets features of a T2I-Adapter.
ADAPTED_CLASSES = ("StableDiffusionAdapterPipeline", "StableDiffusionXLAdapterPipeline")
#: Pipeline attributes that hold the denoising network.
COMPONENTS = ("unet", "transformer")
#: Those of a network that takes over from the first in mid-trajectory.
_SECOND = ("transformer_2", "unet_2")


@dataclass(frozen=True)
class Source:
    """A trained pipeline: its denoising network (computes in float32, eval), its scheduler, where it lies.

    `loras` are fused into the network, and into the text encoders when they are loaded; `loading` says how.
    """

    name: str
    folder: Path
    pipeline_class: str
    component: str
    network: nn.Module
    scheduler: Any
    signature: Signature
    loras: tuple[Lora, ...] = ()
    loading: Loading = field(default_factory=Loading)

    @cached_property
    def model_hash(self) -> str:
        """The SHA-256 that names the network's weights, computed once."""
        return model_hash(self.network)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The network, by the pipeline's name for it; beside control networks both."""
        if isinstance(self.network, ControlledNetwork):
            return {self.component: self.network.unet, CONTROLNET: self.network.controlnet}
        return {self.component: self.network}

    def called_as(self, signature: Signature) -> Source:
        """Return this source with a captured `signature`, itself where its network's class has an entry."""
        if not isinstance(self.signature, Uncaptured) and self.signature.call is None:
            return self
        remember_call(self.network, signature)
        return replace(self, signature=signature)

    def to(self, device: torch.device | str, *, offload: bool = False) -> Source:
        """Return this source with its network on `device`, where it is calibrated and verified.

        The network is moved, not copied. The pipeline's other networks follow it when they are loaded. With
        `offload` the weights of its layers stay where they are, and each goes to `device` when it runs.
        """
        if offload:
            offload_weights(self.network)
        return replace(self, network=self.network.to(device))


def load_source(
    source: str | Path,
    loras: Sequence[Lora] = (),
    *,
    variant: str | None = None,
    without: Sequence[str] = (),
    network: str | None = None,
    pipeline_config: str | None = None,
    allow_pickle: bool = False,
    controlnets: Sequence[str] = (),
    ip_adapters: Sequence[str] = (),
    revision: str | None = None,
    as_stored: bool = False,
    signature: Signature | None = None,
) -> Source:
    """Load the network and the scheduler of a diffusers pipeline, and fuse `loras` into the network.

    `source` is a folder with a model_index.json, a single file of weights, or a Hub id; "user/name@revision"
    or `revision` pin what is fetched from there. `variant` is that of the weights' files, such as "fp16";
    `without` names parts that are not loaded, such as "text_encoder_3". `network`, a folder or a file, takes
    the place of the pipeline's own network; `pipeline_config` is the folder of a pipeline of the same kind,
    where `source` is a file, and `allow_pickle` reads files that are pickles. `controlnets` are folders or
    Hub ids of control networks to put beside the UNet, `ip_adapters` files of IP-Adapters ("FILE[:SCALE]") to
    put into it. `as_stored` keeps the network's
    weights in half precision where its files have them so and no LoRA changes them: half of the memory, and
    the same products bit for bit.
    `signature` is a recipe's, for a network whose class has no entry in architectures.py.
    Raises SourceError where the pipeline is missing, corrupt or not supported, and for a LoRA that does not
    fit it.
    """
    check_version()
    loading = Loading(
        variant,
        tuple(without),
        network,
        pipeline_config,
        allow_pickle,
        tuple(controlnets),
        tuple(ip_adapters),
    )
    repository = Repository.find(str(source), revision)
    folder = (
        folder_of_pipeline(str(source), loading) if repository is None else _download(repository, loading)
    )
    index = read_index(folder)
    if is_feed_forward(index):
        check_loading(folder, loading, loras)
        return _feed_forward(_name_of(source) if repository is None else str(repository), folder, index)
    check_folder(folder, index)
    check_classes(folder, index)
    component = next((name for name in COMPONENTS if index.get(name)), None)
    if component is None:
        raise SourceError(
            f"pipeline '{source}'",
            got=f"the components {', '.join(k for k in index if not k.startswith('_'))}",
            expected=f"a denoising network named {' or '.join(COMPONENTS)}",
            remedy="Use a diffusion pipeline",
        )
    _check_one_network(str(source), index)
    pipeline_class = str(index.get("_class_name", "DiffusionPipeline"))
    keep = as_stored and not loras
    found = (
        _load_part(folder, index, component, loading, required=True, as_stored=keep)
        if network is None
        else load_swapped(
            folder, component, diffusers_class(folder, component, index[component]), loading, as_stored=keep
        )
    )
    found.eval().requires_grad_(False)
    own = signature_of(found)
    _check_own_size(own, found)
    fuse_into_network(found, component, pipeline_class, loras)
    if loading.ip_adapters:
        put_into(found, loading.ip_adapters)
    if loading.ip_adapters or pipeline_class in ADAPTED_CLASSES:
        own = Uncaptured(type(found).__name__)  # its entry does not know what adapters add
    controls = load_controls(folder, index, loading, as_stored=as_stored)
    if controls is not None:
        if loading.ip_adapters:
            raise UsageError(
                "--ip-adapter",
                got="an IP-Adapter beside a control network",
                expected="one of the two",
                remedy="Leave --ip-adapter out, or take a pipeline without control networks",
            )
        pipeline_class = controlled_class(pipeline_class)
        found = controlled(found, controls)
        own = found.signature
    _check_finite(str(source), component, found)
    loaded = Source(
        name=_name_of(source) if repository is None else str(repository),
        folder=folder,
        pipeline_class=pipeline_class,
        component=component,
        network=found,
        scheduler=_as_the_pipeline_has_it(pipeline_class, _load_part(folder, index, "scheduler", loading)),
        signature=own,
        loras=tuple(loras),
        loading=loading,
    )
    return loaded if signature is None else loaded.called_as(signature)


def feed_forward_source(module: nn.Module, latent_shape: Sequence[int], folder: str | Path) -> Source:
    """Write a generator that makes an image in one call into `folder`, and return it as a source.

    `module` maps normal noise [B, *latent_shape] to images [B, C, H, W] in [-1, 1]: a GAN's generator, a
    consistency model. Every command takes the folder as SOURCE. No class is written: its operations are, and
    its weights. The module is not changed. Raises SourceError for one that is no such generator.
    """
    check_version()
    path = Path(folder)
    write_feed_forward(module, tuple(latent_shape), path)
    return load_source(path)


def is_generator(source: str | Path) -> bool:
    """Say whether `source` is the folder of a feed-forward generator."""
    path = Path(source)
    return (path / "model_index.json").is_file() and is_feed_forward(read_index(path))


def _feed_forward(name: str, folder: Path, index: dict[str, Any]) -> Source:
    parts = read_feed_forward(folder, index)
    parts.network.requires_grad_(False)
    _check_finite(name, COMPONENT, parts.network)
    return Source(
        name=name,
        folder=folder,
        pipeline_class=FEED_FORWARD,
        component=COMPONENT,
        network=parts.network,
        scheduler=parts.scheduler,
        signature=signature_of(parts.network),
    )


def _name_of(source: str | Path) -> str:
    """Return what finds a source again: a file by its whole path, for its folder is nobody's."""
    return str(Path(source).resolve()) if is_single_file(source) else str(source)


def pipeline_class_of(source: str | Path, loading: Loading = Loading()) -> str:  # noqa: B008, it is frozen
    """Return the name of a pipeline's class, before its weights are loaded. Raises SourceError."""
    return str(read_index(folder_of_pipeline(str(source), loading)).get("_class_name", "DiffusionPipeline"))


def _check_one_network(name: str, index: Mapping[str, Any]) -> None:
    """Raise SourceError for a trajectory that two networks share: Wan 2.2 14B, below and above a timestep."""
    second = next((part for part in _SECOND if (index.get(part) or [None])[0] is not None), None)
    if second is not None:
        raise SourceError(
            f"pipeline '{name}'",
            got=f"two denoising networks: {second} takes the steps below boundary_ratio "
            f"({index.get('boundary_ratio')})",
            expected="one network for all steps: a recipe is that of one",
            remedy="Use a pipeline with one, such as Wan 2.1, or Wan 2.2's TI2V 5B",
        )


def _check_own_size(signature: Signature, network: Any) -> None:
    """Refuse a network that fails at the size that it is made for, in diffusers too."""
    if signature.architecture != "UNet2DModel":
        return
    shape = signature.sample.resolve(signature.sizes | {"batch": 1})
    multiple = side_multiple(signature.architecture, network.config)
    if any(side % multiple for side in shape[2:]):
        raise SourceError(
            f"network {signature.architecture}",
            got=f"images of {shape[2]}x{shape[3]} for {len(network.config.down_block_types)} levels",
            expected=f"sides that are multiples of {multiple}: each level but the last halves them",
            remedy="Use a network whose levels divide its images; this one cannot run at its own size",
        )


def _check_finite(name: str, component: str, network: nn.Module) -> None:
    """Raise SourceError for a weight that is NaN or infinite; every image would be, too."""
    for tensor_name, tensor in named_weights(network).items():
        if (
            tensor.is_floating_point()
            and tensor.numel()
            and not torch.isfinite(torch.stack(tensor.aminmax())).all()
        ):
            count = int((~torch.isfinite(tensor)).sum())
            raise SourceError(
                f"pipeline '{name}', {component}",
                got=f"{count} of the {tensor.numel()} values of '{tensor_name}' NaN or infinite",
                expected="finite weights",
                remedy="Download or save the checkpoint again; float16 cannot hold values above 65504",
            )


def _as_the_pipeline_has_it(pipeline_class: str, scheduler: Any) -> Any:
    """Return the scheduler that the pipeline samples with: DDIMPipeline makes DDIM of whatever was saved."""
    from diffusers import DDIMScheduler

    if pipeline_class != "DDIMPipeline" or type(scheduler) is DDIMScheduler:
        return scheduler
    return DDIMScheduler.from_config(scheduler.config)


def load_component(folder: Path, part: str, loading: Loading = Loading()) -> Any:  # noqa: B008, it is frozen
    """Load one component of the pipeline in `folder`, such as its "vae". Raises SourceError."""
    component = _load_part(folder, read_index(folder), part, loading)
    return component.eval().requires_grad_(False) if isinstance(component, nn.Module) else component


def folder_of_pipeline(source: str, loading: Loading = Loading()) -> Path:  # noqa: B008, it is frozen
    """Return the folder of a pipeline: downloaded for a Hub id, made of a single file. Raises SourceError."""
    repository = Repository.find(source)
    if repository is not None:
        return _download(repository, loading)
    path = Path(source)
    if source and path.is_dir():
        return path
    if source and is_single_file(path):
        return folder_of_file(path, loading)
    check_file(path)
    raise SourceError(
        f"pipeline '{source}'",
        got="no such folder",
        expected="a folder with a model_index.json, or a Hub id such as google/ddpm-cifar10-32",
        remedy="Check the path",
    )


def _download(repository: Repository, loading: Loading) -> Path:
    from diffusers import DiffusionPipeline

    hub_id = str(repository)
    chosen: dict[str, Any] = dict(loading.nothing_for_left_out())
    if loading.variant is not None:
        chosen["variant"] = loading.variant
    try:
        # safetensors alone: other weight files are pickles, which run code
        return Path(
            DiffusionPipeline.download(
                repository.id, revision=repository.revision, use_safetensors=True, **chosen
            )
        )
    except Exception as fault:  # the Hub client raises many unrelated kinds
        raise SourceError(
            f"pipeline '{hub_id}'",
            got=f"{type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else ''}",
            expected="a folder that exists, or a Hub id that can be downloaded",
            remedy="Check the spelling and the network, or pass a local folder",
        ) from fault


def _load_part(
    folder: Path,
    index: Mapping[str, Any],
    part: str,
    loading: Loading,
    *,
    required: bool = False,
    as_stored: bool = False,
) -> Any:
    """Load a model or a scheduler of diffusers; a model that is `required` has the chosen variant."""
    cls = diffusers_class(folder, part, index.get(part))
    check_part(folder / part)
    for name in _CONFIGS:
        check_numbers(folder / part / name)
    arguments: dict[str, Any] = {"subfolder": part, "local_files_only": True}
    missing: list[str] = []
    variant = variant_of(folder / part, loading, required=required)
    try:
        if not issubclass(cls, nn.Module):
            return cls.from_pretrained(folder, **arguments)  # type: ignore[attr-defined]
        half = half_type_of_part(folder / part, variant) if as_stored else None
        loaded, info = cls.from_pretrained(  # type: ignore[attr-defined]
            folder, torch_dtype=half or torch.float32, output_loading_info=True, variant=variant, **arguments
        )
        missing = info["missing_keys"]
    except Exception as fault:  # diffusers and safetensors raise many unrelated kinds on damage
        raise corrupt(folder / part, fault) from fault
    if missing:  # diffusers would go on with random values
        raise corrupt(folder / part, ValueError(f"no weights for {', '.join(sorted(missing)[:3])}"))
    if half is not None:
        compute_in_float32(loaded)
    return loaded
