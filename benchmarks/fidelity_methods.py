"""The methods that the fidelity benchmark compares: each turns a study into a quantized network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from competitors import quantize_with_modelopt, quantize_with_nncf, quantize_with_onnxruntime
from fidelity_study import Study
from torch import Tensor

from accuquant._util.progress import Progress
from accuquant.calibration import CalibrationSettings
from accuquant.calibration.methods.registry import METHODS as RIVALS
from accuquant.calibration.placement import Placement
from accuquant.denoising.process import NetworkFn
from accuquant.export.write.pipeline_folder import write_pipeline
from accuquant.networks.network import call
from accuquant.networks.simulate import simulate
from accuquant.recipe import Recipe
from accuquant.runtime.engine_model import EngineModel
from accuquant.runtime.open_runner import open_runner
from accuquant.runtime.runner import Runner


@dataclass(frozen=True)
class Bits:
    """Bits of weights and activations; `Bits.parse("W4A8")`."""

    weights: int
    activations: int

    @classmethod
    def parse(cls, text: str) -> Bits:
        """Read "W4A8"; ValueError where it is not of that form."""
        weights, _, activations = text.upper().removeprefix("W").partition("A")
        return cls(int(weights), int(activations))

    def __str__(self) -> str:
        return f"W{self.weights}A{self.activations}"


@dataclass(frozen=True, eq=False)
class Method:
    """A way to quantize.

    `package` names another tool, `rival` a published method of `accuquant calibrate --method`; `changes` are
    ours, to CalibrationSettings.
    """

    name: str
    meaning: str
    package: str = ""
    only_8_bits: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    rival: str = ""

    def supports(self, bits: Bits) -> bool:
        """Return whether the method can quantize to `bits`."""
        if not self.rival:
            return not self.only_8_bits or bits == Bits(8, 8)
        rival = RIVALS[self.rival]
        pairs = ((bits.weights, rival.weight_bits), (bits.activations, rival.activation_bits))
        return all(low <= found <= high for found, (low, high) in pairs)

    def settings(self, study: Study, bits: Bits) -> CalibrationSettings:
        """Return the settings of our own calibration for this method."""
        if self.rival:
            common = {name: getattr(study.settings, name) for name in _COMMON}
            bit = {"weight_bits": bits.weights, "activation_bits": bits.activations}
            return CalibrationSettings.preset("balanced", method=self.rival, **common, **bit)
        return replace(
            study.settings, weight_bits=bits.weights, activation_bits=bits.activations, **self.changes
        )

    def made_by(self, study: Study, bits: Bits) -> dict[str, Any]:
        """Return all that decides this method's images."""
        common = {**study.sampling, "method": self.name, "bits": str(bits)}
        if not self.package:
            return {**common, "engine": study.engine, "calibration": self.settings(study, bits).to_dict()}
        names = ("steps", "num_trajectories", "batch_size", "include", "exclude", "float_budget", "seed")
        calibration = {name: getattr(study.settings, name) for name in names}
        return {**common, "calibration": calibration, "version": version(self.package)}


#: What rivals have in common with our own settings.
_COMMON = ("steps", "num_trajectories", "batch_size", "affine", "include", "exclude", "seed")
_NO_LEARNING = {"iterations": 0, "shared_iterations": 0}
_PLAIN = {**_NO_LEARNING, "affine": False, "refine": False, "rounding": "nearest"}
METHODS = {
    method.name: method
    for method in (
        Method(
            "onnxruntime",
            "quantize_static, min-max, symmetric, inputs and weights of the layers only; run by ONNX Runtime",
            package="onnxruntime",
            only_8_bits=True,
        ),
        Method("modelopt", "NVIDIA Model Optimizer, INT8_DEFAULT_CFG; simulated", package="nvidia-modelopt"),
        Method("nncf", "nncf.quantize, the layers only; run by OpenVINO", package="nncf", only_8_bits=True),
        Method(
            "nncf-default",
            "nncf.quantize, also what is not a layer (additions, attention products); run by OpenVINO",
            package="nncf",
            only_8_bits=True,
        ),
        Method(
            "minmax-groups",
            "a min-max scale per step group, symmetric, no learning",
            changes={**_PLAIN, "observer": "minmax"},
        ),
        Method(
            "mse-groups",
            "an MSE scale per step group, symmetric, no learning",
            changes={**_PLAIN, "observer": "mse"},
        ),
        Method(
            "mse-groups-affine",
            "mse-groups with zero-points",
            changes={**_PLAIN, "observer": "mse", "affine": True},
        ),
        *(
            Method(rival.name, rival.meaning, rival=rival.name)
            for rival in RIVALS.values()
            if rival.name != "accuquant"
        ),
        Method("start", "our settings before learning", changes=_NO_LEARNING),
        Method("scales", "our settings, only activation scales learned", changes={"shared_iterations": 0}),
        Method(
            "independent", "our settings, each step learned by itself", changes={"gradient": "independent"}
        ),
        Method("accuquant", "our settings", changes={"gradient": "accuquant"}),
    )
}


def latents_of(study: Study, method: Method, bits: Bits, progress: Progress) -> Tensor:
    """Return the method's last latents [N, C, H, W], from the cache or made now."""
    path = cached_file(study, method, bits)
    if path.is_file():
        return study.load(path)
    with quantized_network(study, method, bits, progress) as network:
        return study.sample(path, network, progress)


def cached_file(study: Study, method: Method, bits: Bits) -> Path:
    """Return where the method's latents are kept."""
    return study.file(f"{bits}-{method.name}", method.made_by(study, bits), ".npy")


@contextmanager
def quantized_network(study: Study, method: Method, bits: Bits, progress: Progress) -> Iterator[NetworkFn]:
    """Yield the network that `method` makes: (sample, timestep) -> prediction."""
    if not method.package:
        with _our_network(study, method, bits, progress) as network:
            yield network
    elif method.name == "modelopt":
        quantized = quantize_with_modelopt(
            study.source.network,
            study.placement(progress).quantized,
            study.calls(progress),
            weight_bits=bits.weights,
            activation_bits=bits.activations,
        )
        yield lambda sample, timestep: call(quantized, sample, timestep)
    else:
        with TemporaryDirectory() as folder, _graph_runner(study, method, Path(folder), progress) as runner:
            yield runner_network(runner)


@contextmanager
def _our_network(study: Study, method: Method, bits: Bits, progress: Progress) -> Iterator[NetworkFn]:
    settings = _own_settings(study, method, bits, study.placement(progress))
    recipe = study.recipe(f"{bits}-{method.name}", settings, progress)
    if study.engine == "torch":
        simulated = simulate(study.source.network, Recipe.load(recipe))
        yield lambda sample, timestep: call(simulated, sample, timestep)
        return
    with TemporaryDirectory() as folder:
        exported = Path(folder) / "exported"
        write_pipeline(study.source, Recipe.load(recipe), exported)
        with EngineModel.from_folder(exported, study.engine, num_threads=study.threads) as model:
            yield lambda sample, timestep: torch.from_numpy(model(sample.numpy(), float(timestep)))


def _own_settings(study: Study, method: Method, bits: Bits, placement: Placement) -> CalibrationSettings:
    left = placement.float_layers
    return replace(method.settings(study, bits), exclude=left, include=(), float_budget=0.0)


def _graph_runner(study: Study, method: Method, folder: Path, progress: Progress) -> Runner:
    layers, graph, calls = study.placement(progress).quantized, study.float_graph(), study.calls(progress)
    progress.stage(f"calibrating {method.name}", 0)
    if method.name == "onnxruntime":
        path = folder / "quantized.onnx"
        quantize_with_onnxruntime(graph, layers, calls, path)
        return open_runner(path, "onnxruntime", num_threads=study.threads)
    path = folder / "quantized.xml"
    activations = quantize_with_nncf(graph, layers, calls, path, only_layers=method.name == "nncf")
    progress.message(f"{method.name}: {activations} quantized activations for {len(layers)} layers")
    return open_runner(path, "openvino", num_threads=study.threads)


def runner_network(runner: Runner) -> NetworkFn:
    """Return a loaded graph (sample, timestep float32 [1]) as a function of tensors."""
    output = runner.output_specs[0].name

    def run(sample: Tensor, timestep: Tensor) -> Tensor:
        feeds = {"sample": sample.numpy(), "timestep": np.array([float(timestep)], np.float32)}
        return torch.from_numpy(runner.infer(feeds)[output])

    return run
