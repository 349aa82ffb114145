"""Which input is the sample and which the timestep, by name, by shape, or because the user says so."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from foreign_graphs import save, tiny_network
from onnx import TensorProto, helper

from accuquant.errors import ExportError, SourceError, UsageError
from accuquant.export import write_onnx
from accuquant.export.read.onnx_inputs import inputs_of, load_feeds, parse_names, random_feeds
from accuquant.export.read.onnx_source import read_model
from accuquant.observation.observe_onnx import observe_onnx
from accuquant.recipe import Recipe

ANY = Path("m.onnx")


def graph_of(**inputs: tuple[int, ...]) -> ir.Graph:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in inputs.items()]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", [values[0].name], ["out"])
    return ir.serde.deserialize_graph(helper.make_graph([node], "g", values, [output]))


@pytest.mark.parametrize(
    ("inputs", "roles"),
    [
        ({"x": (1, 4, 8, 8), "timesteps": (1,), "context": (1, 77, 8)}, ("x", "timesteps")),
        ({"x": (1, 4, 8, 8), "time": ()}, ("x", "time")),
        ({"x": (1, 4, 8, 8), "sigma": (1,), "class_labels": (1,)}, ("x", "sigma")),
        ({"input.1": (1, 4, 8, 8), "onnx::Cast_1": (1,)}, ("input.1", "onnx::Cast_1")),
        ({"arg0": (1,), "arg1": (1, 4, 8, 8), "arg2": (1, 77, 8)}, ("arg1", "arg0")),
        ({"input": (1, 4, 8, 8), "c": (1,), "class_labels": (1,)}, ("input", "c")),
        ({"hidden_states": (1, 64, 4), "t": (1,)}, ("hidden_states", "t")),
    ],
)
def test_names_and_shapes_tell_the_inputs(inputs: dict[str, tuple[int, ...]], roles: tuple[str, str]) -> None:
    found = inputs_of(graph_of(**inputs), ANY)
    assert (found.sample, found.timestep) == roles


def test_what_cannot_be_told_is_asked_for() -> None:
    graph = graph_of(image=(1, 3, 8, 8), noisy=(1, 3, 8, 8), time=(1,))
    with pytest.raises(SourceError, match="Say which they are: --input-names sample=NAME,timestep=NAME"):
        inputs_of(graph, ANY)
    assert inputs_of(graph, ANY, {"sample": "noisy"}).sample == "noisy"


@pytest.mark.parametrize("text", ["", "sample", "sample=", "latent=x", "sample=x,sample=y", "sample=x,,"])
def test_refuses_input_names_that_say_nothing(text: str) -> None:
    with pytest.raises(UsageError, match="--input-names: got"):
        parse_names(text)


def test_reads_input_names() -> None:
    assert parse_names("sample=x, timestep=onnx::Cast_1") == {"sample": "x", "timestep": "onnx::Cast_1"}


@pytest.mark.parametrize("names", [{"sample": "z"}, {"sample": "x", "timestep": "x"}])
def test_refuses_names_that_the_graph_does_not_have(names: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"--input-names: .*inputs of the graph: x, time"):
        inputs_of(graph_of(x=(1, 4, 8, 8), time=(1,)), ANY, names)


def test_noise_levels_are_fed_to_what_takes_them() -> None:
    feeds = random_feeds(inputs_of(graph_of(x=(1, 4, 8, 8), sigma=(1,)), ANY), 8, 0)
    levels = [float(feed["sigma"][0]) for feed in feeds]
    assert levels == sorted(levels, reverse=True)
    assert 0.03 < levels[-1] < 0.1
    assert 5 < levels[0] < 14.6


def recipe_for(network: Path, edges: tuple[float, ...]) -> Recipe:
    """Return a recipe whose two step groups have scales that differ."""
    from dataclasses import replace

    from accuquant.groups import StepGroups

    observed = observe_onnx(network, calls=1)
    scales = np.arange(1, len(edges), dtype=np.float32)
    layers = {
        name: replace(layer, activation_scale=layer.activation_scale * scales)
        for name, layer in observed.layers.items()
    }
    return replace(observed, groups=StepGroups(edges), layers=layers)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("x", "timesteps"), None),
        (("x", "time"), None),
        (("input.1", "onnx::Cast_1"), None),
        (("x", "sigma"), {"timestep": "sigma"}),
    ],
)
def test_a_recipe_fits_a_graph_with_other_input_names(
    tmp_path: Path, names: tuple[str, str], said: dict[str, str] | None
) -> None:
    recipe = recipe_for(save(tiny_network(), tmp_path / "own.onnx"), (1000.0, 500.0, 0.0))
    expected, found = (
        write_onnx(
            save(tiny_network(names=these), tmp_path / f"{number}.onnx"),
            recipe,
            tmp_path / f"{number}-int8.onnx",
            input_names=said if these == names else None,
        )[0]
        for number, these in enumerate((("sample", "timestep"), names))
    )
    model = onnx.load(found)
    assert [value.name for value in model.graph.input] == list(names)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert f'"{names[1]}"' in facts["accuquant.signature"]
    assert facts["accuquant.recipe_sha256"] == recipe.sha256()
    sample = np.random.default_rng(1).normal(size=(1, 4, 8, 8)).astype(np.float32)
    outputs = {run(expected, ("sample", "timestep"), sample, t).tobytes() for t in (900, 100)}
    assert len(outputs) == 2
    assert outputs == {run(found, names, sample, t).tobytes() for t in (900, 100)}


def run(path: Path, names: tuple[str, str], sample: np.ndarray, timestep: float) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, {names[0]: sample, names[1]: np.full(1, timestep, np.float32)})[0]
    return output


def test_noise_levels_do_not_choose_a_step_group(tmp_path: Path) -> None:
    recipe = recipe_for(save(tiny_network(), tmp_path / "own.onnx"), (1000.0, 500.0, 0.0))
    other = save(tiny_network(names=("x", "sigma")), tmp_path / "sigma.onnx")
    with pytest.raises(ExportError, match=r"'sigma', which takes noise levels.*--input-names timestep=sigma"):
        write_onnx(other, recipe, tmp_path / "int8.onnx")


@pytest.mark.parametrize("given", [False, True])
def test_bfloat16_is_observed(tmp_path: Path, given: bool) -> None:
    """ONNX Runtime takes no bfloat16 arrays, and numpy saves them as bytes without a type."""
    half = save(tiny_network(opset=22, kind=TensorProto.BFLOAT16), tmp_path / "half.onnx")
    single = save(tiny_network(), tmp_path / "single.onnx")
    inputs = None
    feeds = random_feeds(inputs_of(read_model(half).graph, half), 1, 0)[0]
    assert feeds["sample"].dtype == ml_dtypes.bfloat16
    assert 0.9 < float(np.std(feeds["sample"].astype(np.float32))) < 1.1
    if given:
        inputs = tmp_path / "in.npz"
        np.savez(inputs, allow_pickle=True, **feeds)
        loaded = load_feeds(inputs, inputs_of(read_model(half).graph, half))[0]
        assert all(np.array_equal(loaded[name], array) for name, array in feeds.items())
    recipe = observe_onnx(half, inputs=inputs, calls=1, observer="minmax")
    expected = observe_onnx(single, calls=1, observer="minmax").layers["mid"].activation_scale
    assert recipe.layers["mid"].activation_scale == pytest.approx(expected, rel=0.05)
