"""A network and an engine as the same kind of function: what a branch of a comparison is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from accuquant.networks.control_signature import DOWN, DOWN_OUT, IMAGE, MID, MID_OUT, SCALE, image_names
from accuquant.networks.controlled import ControlledNetwork, with_residuals
from accuquant.networks.device import device_of
from accuquant.networks.network import ConditioningTensors, call
from accuquant.runtime.engine_model import EngineModel
from accuquant.verification.measure.rollout import BranchFn


def torch_branch(network: nn.Module) -> BranchFn:
    """Return a denoising network, wherever it is, as a function of tensors on the CPU."""
    device = device_of(network)

    def run(sample: Tensor, timestep: Tensor, conditioning: ConditioningTensors) -> Tensor:
        given = {name: tensor.to(device) for name, tensor in conditioning.items()}
        return call(network, sample.to(device), timestep, given).to(sample.device)

    return run


def controlled_branch(unet: EngineModel, controls: Sequence[EngineModel]) -> BranchFn:
    """Return the engines of a UNet and its control networks as one function: images in, prediction out."""
    names = image_names(len(controls))

    def run(sample: Tensor, timestep: Tensor, conditioning: ConditioningTensors) -> Tensor:
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in conditioning.items()}
        noisy, at = sample.detach().cpu().numpy(), float(timestep)
        scales = arrays.pop(SCALE)
        images = [arrays.pop(name) for name in names]
        sums: dict[str, Any] = {}
        for k, (control, image) in enumerate(zip(controls, images, strict=True)):
            channels = int(control.manifest.signature.sample.shape[1])
            given = {**arrays, IMAGE: image, SCALE: scales[k : k + 1]}
            for name, residual in control.outputs(noisy[:, :channels], at, given).items():
                sums[name] = sums[name] + residual if name in sums else residual
        residuals = {
            MID if name == MID_OUT else name.replace(DOWN_OUT, DOWN): value for name, value in sums.items()
        }
        return torch.from_numpy(unet(noisy, at, arrays | residuals)).to(sample)

    return run


def half_controlled_branch(unet: EngineModel, network: ControlledNetwork) -> BranchFn:
    """Return a UNet's engine beside float control networks, which compute where they are."""
    device, engine = device_of(network), engine_branch(unet)

    def run(sample: Tensor, timestep: Tensor, conditioning: ConditioningTensors) -> Tensor:
        given = {name: tensor.to(device) for name, tensor in conditioning.items()}
        shared, residuals = with_residuals(network, sample.to(device), timestep, given)
        return engine(sample, timestep, shared | residuals)

    return run


def engine_branch(model: EngineModel) -> BranchFn:
    """Return an EngineModel as a function of tensors."""

    def run(sample: Tensor, timestep: Tensor, conditioning: ConditioningTensors) -> Tensor:
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in conditioning.items()}
        return torch.from_numpy(model(sample.detach().cpu().numpy(), float(timestep), arrays)).to(sample)

    return run


def export_branch(
    folder: Path, model: EngineModel, network: nn.Module, opened: ExitStack, engine: str, **options: Any
) -> BranchFn:
    """Return the exported network `model` of `folder` as a function that takes what `network` takes.

    Beside control networks it is the pair: those that the export holds are opened into `opened`, with
    `options`, and others compute in float.
    """
    if not isinstance(network, ControlledNetwork):
        return engine_branch(model)
    folders = model.manifest.control_folders(folder)
    if not folders:
        return half_controlled_branch(model, network)
    controls = [opened.enter_context(EngineModel.from_folder(place, engine, **options)) for place in folders]
    return controlled_branch(model, controls)
