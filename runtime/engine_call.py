"""Call an exported network with torch tensors: through the host, or without leaving the GPU."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from accuquant._util.facts import read_facts
from accuquant.errors import EngineError, UsageError
from accuquant.networks.signature import TensorSpec
from accuquant.runtime.device_memory import DeviceArray
from accuquant.runtime.engine_model import EngineModel
from accuquant.runtime.static_batch import batched_names


def call_engine(
    model: EngineModel,
    sample: torch.Tensor,
    timestep: float,
    conditioning: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
) -> dict[str, torch.Tensor]:
    """Return the named outputs at the scheduler's `timestep` with the sample's type and device.

    An empty `outputs` returns all.
    """
    specs = {spec.name: spec for spec in model.manifest.signature.conditioning}
    if sample.is_cuda and model.runs_on_device:
        found = _on_gpu(model, specs, sample, timestep, conditioning)
    else:
        arrays = {name: _to_numpy(tensor, specs[name]) for name, tensor in conditioning.items()}
        given = _to_numpy(sample, model.manifest.signature.sample)
        predicted = model.outputs(given, timestep, arrays)
        found = {name: torch.from_numpy(array) for name, array in predicted.items()}
    return {
        name: tensor.to(sample.device, sample.dtype)
        for name, tensor in found.items()
        if not outputs or name in outputs
    }


def single_timestep(timestep: torch.Tensor | float) -> float:
    """Return the one value of a timestep. Raises UsageError where there are several."""
    if not isinstance(timestep, torch.Tensor):
        return timestep
    values = set(timestep.flatten().cpu().tolist())
    if len(values) != 1:
        raise UsageError(
            "timestep",
            got=f"{len(values)} different values in one batch",
            expected="one timestep for the whole batch: step groups have their own scales",
            remedy="Call the network once for each timestep",
        )
    value: float = values.pop()
    return value


def read_config(original: Any, path: Path) -> dict[str, Any]:
    """Return the configuration at `path` of a network of the class `original`. Raises EngineError."""
    try:
        read_facts(path, dict[str, Any])  # diffusers' own reader has no limits
        config: dict[str, Any] = original.load_config(path.parent)
        return config
    except (OSError, ValueError) as fault:
        raise EngineError(
            f"configuration '{path}'",
            got=f"{type(fault).__name__}: {(str(fault).splitlines() or [''])[0]}",
            expected="the JSON that diffusers writes",
            remedy="Copy the whole exported folder, or run `accuquant export` again",
        ) from fault


def defaults_of(original: type) -> dict[str, Any]:
    """Return the constructor's defaults: an older config.json lacks keys that pipelines read."""
    parameters = inspect.signature(original).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _on_gpu(
    model: EngineModel,
    specs: Mapping[str, TensorSpec],
    sample: torch.Tensor,
    timestep: float,
    conditioning: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Predict without a value passing the host, but for the timestep, which finds the step group."""
    if sample.device.index != torch.cuda.current_device():
        raise UsageError(
            "sample",
            got=f"a tensor on {sample.device}",
            expected=f"one on cuda:{torch.cuda.current_device()}, where the engine is",
            remedy="Choose the GPU for the whole process: CUDA_VISIBLE_DEVICES=1, for example",
        )
    signature = model.manifest.signature
    array = model.timestep_array(timestep)
    # A fill is a kernel: a copy from the host could wait for the steps before.
    at = torch.full(array.shape, array.flat[0].item(), device=sample.device, dtype=torch.float64)
    tensors = {
        signature.sample.name: _on_device(sample, signature.sample, sample.device),
        signature.timestep.name: _on_device(at, signature.timestep, sample.device),
    }
    for name, tensor in conditioning.items():
        tensors[name] = _on_device(tensor, specs[name], sample.device)
    missing = model.missing_rows(sample.shape, timestep)
    if missing:
        names = batched_names(signature)
        tensors = {n: _pad_rows(t, missing) if n in names else t for n, t in tensors.items()}
    outputs: dict[str, torch.Tensor] = {}

    def allocate(name: str, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        outputs[name] = torch.empty(shape, dtype=getattr(torch, dtype), device=sample.device)
        return _device_array(outputs[name])

    stream = torch.cuda.current_stream(sample.device).cuda_stream
    feeds = {name: _device_array(tensor) for name, tensor in tensors.items()}
    model.predict_on_device(feeds, timestep, allocate, stream)
    return {name: output[: len(sample)] for name, output in outputs.items()}


def _to_numpy(tensor: torch.Tensor, spec: TensorSpec) -> Any:
    # numpy has no bfloat16: convert in torch.
    return tensor.detach().to("cpu", getattr(torch, spec.dtype)).numpy()


def _on_device(tensor: torch.Tensor, spec: TensorSpec, device: torch.device) -> torch.Tensor:
    return tensor.detach().to(device, getattr(torch, spec.dtype)).contiguous()


def _pad_rows(tensor: torch.Tensor, missing: int) -> torch.Tensor:
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])])


def _device_array(tensor: torch.Tensor) -> DeviceArray:
    return DeviceArray(tensor.data_ptr(), tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
