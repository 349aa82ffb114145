"""A network and an engine as the same kind of function: what a branch of a comparison is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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


def engine_branch(model: EngineModel) -> BranchFn:
    """Return an EngineModel as a function of tensors."""

    def run(sample: Tensor, timestep: Tensor, conditioning: ConditioningTensors) -> Tensor:
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in conditioning.items()}
        return torch.from_numpy(model(sample.detach().cpu().numpy(), float(timestep), arrays)).to(sample)

    return run
