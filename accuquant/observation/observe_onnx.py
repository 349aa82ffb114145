"""A recipe for a float .onnx without its pipeline: scales from what the layers see in a few calls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from accuquant._util.files import sha256_of_file
from accuquant._util.progress import Share
from accuquant.errors import SourceError, UsageError, last_line
from accuquant.export.read.float_session import FloatSession
from accuquant.export.read.onnx_inputs import (
    Feed,
    inputs_of,
    load_feeds,
    random_feeds,
    sizes_of,
    timestep_values,
)
from accuquant.export.read.onnx_source import read_float
from accuquant.export.read.session_device import SessionDevice
from accuquant.graph.quantized_family import pairs_in
from accuquant.groups import StepGroups
from accuquant.observation.onnx_layers import OnnxLayer, find_layers, place_layers
from accuquant.qparams import WEIGHT_AXIS, LayerQParams
from accuquant.recipe import Recipe
from accuquant.scales.observer import choose_zero_point, observer_named, weight_scale

#: What recipes, files and the command line call the result.
OBSERVED = "observed, not calibrated over denoising steps"
_VALUES_PER_CALL = 16384
_DEFAULT_CALLS = 8
_TOP = 1000.0
#: How ONNX Runtime's arenas end, on the CPU and on CUDA.
_NO_MEMORY = "Failed to allocate memory"

Samples = dict[str, list[npt.NDArray[np.float32]]]


def observe_onnx(
    path: Path,
    *,
    inputs: Path | None = None,
    calls: int = _DEFAULT_CALLS,
    weight_bits: int = 8,
    activation_bits: int = 8,
    observer: str = "mse",
    seed: int = 0,
    input_names: Mapping[str, str] | None = None,
    device: str = "cpu",
    tf32: bool = False,
    progress: Share | None = None,
) -> Recipe:
    """Return a recipe with one step group for the float graph at `path`.

    Its layers' inputs are recorded in ONNX Runtime, on `device` ("auto", "cpu", "cuda", "cuda:1"), over the
    calls that the .npz `inputs` holds, or over `calls` random ones: normal samples with timesteps spread over
    [0, 1000). No denoising step is simulated and nothing is learned; `calibration["method"]` says so.
    `input_names` gives the input that is the "sample" or the "timestep" where its name does not tell. Raises
    SourceError for a file that is no denoising network or that ONNX Runtime cannot run, UsageError for inputs
    that do not fit or lead to values that are not finite, and for a device that does not work. A layer that
    saw only zeros stays float.
    """
    say = progress or (lambda _text, _share: None)
    computed, path = SessionDevice(device, tf32), Path(path)
    model = read_float(path)
    wanted = inputs_of(model.graph, path, input_names)
    layers = place_layers(
        model.graph, find_layers(model.graph), sample=wanted.sample, timestep=wanted.timestep
    )
    if not layers:
        pairs = pairs_in(node.op_type for node in model.graph)
        found = (
            f"a graph with {pairs} QuantizeLinear and DequantizeLinear, quantized already" if pairs else ""
        )
        raise _nothing_to_quantize(
            path, found or "no layer with a constant weight between its first and its last"
        )
    feeds = random_feeds(wanted, calls, seed) if inputs is None else load_feeds(inputs, wanted)
    samples = _record(model, path, layers, feeds, seed, computed, say)
    layers = [layer for layer in layers if samples[layer.name][0].any()]  # zeros have no scale
    if not layers:
        raise _nothing_to_quantize(path, "nothing but zeros at the input of every layer")
    qparams = {}
    for number, layer in enumerate(layers):
        say("choosing scales", 0.5 + 0.5 * number / len(layers))
        qparams[layer.name] = _qparams(layer, samples, weight_bits, activation_bits, observer)
    top = max(_TOP, math.floor(max(timestep_values(feeds, wanted))) + 1.0)
    return Recipe(
        groups=StepGroups((top, 0.0)),
        layers=qparams,
        signature=wanted.signature(),
        scheduler={},
        model_hash=sha256_of_file(path),
        calibration=_facts(path, inputs, len(feeds), observer, seed),
    )


def _nothing_to_quantize(path: Path, got: str) -> SourceError:
    return SourceError(
        f"'{path}'",
        got=got,
        expected="convolutions or linear layers in float32",
        remedy="Export the float network; a file that is quantized already cannot be quantized again",
    )


def _facts(path: Path, inputs: Path | None, calls: int, observer: str, seed: int) -> dict[str, Any]:
    return {
        "method": OBSERVED,
        "source": str(path),
        "inputs": "random" if inputs is None else str(inputs),
        "settings": {"calls": calls, "observer": observer, "seed": seed},
    }


def _record(
    model: ir.Model,
    path: Path,
    layers: Sequence[OnnxLayer],
    feeds: list[Feed],
    seed: int,
    device: SessionDevice,
    say: Share,
) -> Samples:
    """Run every feed and keep some values, and the extremes, of each layer's input."""
    inputs = {layer.name: _inputs_of(layer) for layer in layers}
    names = list(dict.fromkeys(name for several in inputs.values() for name in several))
    session = FloatSession(model, path, shown=names, device=device)
    rng = np.random.default_rng(seed)
    kept: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}
    for number, feed in enumerate(feeds):
        say(f"observing call {number + 1} of {len(feeds)}", 0.5 * number / len(feeds))
        for name, array in zip(names, _run(session, path, names, feed), strict=True):
            kept[name].append(_draw(array.reshape(-1), rng))
    merged = {
        layer: np.concatenate([array for name in several for array in kept[name]])
        for layer, several in inputs.items()
    }
    _check_finite(path, merged)
    return {layer: [values] for layer, values in merged.items()}


def _check_finite(path: Path, samples: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Raise UsageError for the first layer whose input was not finite in some call."""
    for layer, values in samples.items():
        if not np.isfinite(values).all():
            raise UsageError(
                f"'{path}', layer '{layer}'",
                got="an input that is NaN or infinite",
                expected="finite values, to choose a scale for",
                remedy="Give --inputs FILE.npz with arrays that the network is made for",
            )


def _inputs_of(layer: OnnxLayer) -> list[str]:
    """Return the names of the tensors that the layer's nodes read, each once."""
    values = [node.inputs[0] for node in layer.nodes]
    return list(dict.fromkeys(str(value.name) for value in values if value is not None))


def _draw(flat: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    if not flat.size:  # an extent of 0: nothing was seen
        return flat.astype(np.float32)
    picks = rng.integers(flat.size, size=min(flat.size, _VALUES_PER_CALL))
    return np.concatenate([[flat.min(), flat.max()], flat[picks]]).astype(np.float32)


def _run(session: FloatSession, path: Path, names: list[str], feed: Feed) -> list[npt.NDArray[Any]]:
    try:
        return session.run(names, feed)
    except Exception as fault:  # ONNX Runtime has exception classes of its own
        if _NO_MEMORY in str(fault):
            raise UsageError(
                f"'{path}'",
                got=f"no memory left for {sizes_of(feed)} on the device {session.device.name}",
                expected="room for every tensor that a layer reads",
                remedy="Give --inputs FILE.npz with a smaller batch, or --device cpu",
            ) from fault
        raise UsageError(
            f"'{path}'",
            got=f"an error for {sizes_of(feed)} ({last_line(fault)})",
            expected="inputs that fit together",
            remedy="Give --inputs FILE.npz with arrays of the sizes that the network takes",
        ) from fault


def _qparams(
    layer: OnnxLayer, samples: Samples, weight_bits: int, activation_bits: int, observer: str
) -> LayerQParams:
    weight = np.asarray(layer.weight.load(), np.float32)
    if not np.isfinite(weight).all():
        raise SourceError(
            f"layer '{layer.name}'",
            got="a weight with values that are NaN or infinite",
            expected="finite weights",
            remedy="Export the network again from a checkpoint whose weights are finite",
        )
    values = samples[layer.name]
    zero_point = choose_zero_point(values, activation_bits)
    scale = observer_named(observer)(values[0], activation_bits, zero_point)
    return LayerQParams(
        name=layer.name,
        kind=layer.kind,
        weight_shape=tuple(weight.shape),
        fingerprint=layer.fingerprint,
        weight_scale=weight_scale(weight, weight_bits, WEIGHT_AXIS[layer.kind]),
        activation_scale=np.array([scale], np.float32),
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        zero_point=zero_point,
    )
