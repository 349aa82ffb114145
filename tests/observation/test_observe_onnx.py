"""A float .onnx that somebody else exported becomes int8 without a pipeline or a recipe."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from tiny_networks import make_inputs, make_network
from torch import nn

from accuquant.errors import ExportError, SourceError, UsageError
from accuquant.export import check_model, write_onnx
from accuquant.export.read import widen_half
from accuquant.export.read.trace import trace
from accuquant.networks.network import call, signature_of
from accuquant.observation.observe_onnx import OBSERVED, observe_onnx
from accuquant.recipe import Recipe

Array = np.ndarray[Any, Any]


def export_like_optimum(network: nn.Module, path: Path, *, opset: int = 14) -> None:
    """TorchScript, an int64 timestep, dynamic axes and folded constants, as Optimum exports a UNet."""

    class Positional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = network

        def forward(self, sample: Any, timestep: Any, text: Any) -> Any:
            return self.unet(sample, timestep, text, return_dict=False)[0]

    sample, conditioning = make_inputs(signature_of(network))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Positional().eval(),
            (sample, torch.tensor([3]), conditioning["encoder_hidden_states"]),
            path,
            dynamo=False,
            opset_version=opset,
            do_constant_folding=True,
            input_names=["sample", "timestep", "encoder_hidden_states"],
            output_names=["out_sample"],
            dynamic_axes={
                "sample": {0: "batch_size", 2: "height", 3: "width"},
                "timestep": {0: "steps"},
                "encoder_hidden_states": {0: "batch_size", 1: "sequence_length"},
            },
        )


def export_with_dynamo(network: nn.Module, path: Path) -> None:
    ir.save(trace(network, signature_of(network)), path)


@pytest.fixture(scope="module", params=["optimum", pytest.param("dynamo", marks=pytest.mark.slow)])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, Path]:
    network = make_network("stable-diffusion-2")
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    exporters: dict[str, Callable[[nn.Module, Path], None]] = {
        "optimum": export_like_optimum,
        "dynamo": export_with_dynamo,
    }
    exporters[request.param](network, path)
    return network, path


def run(path: Path, feeds: dict[str, Array]) -> Array:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    dtypes = {v.name: np.int64 if "int64" in v.type else np.float32 for v in session.get_inputs()}
    return np.asarray(session.run(None, {k: np.asarray(v, dtypes[k]) for k, v in feeds.items()})[0])


def feeds_of(network: nn.Module, seed: int, timestep: float) -> dict[str, Array]:
    sample, conditioning = make_inputs(signature_of(network), seed=seed)
    arrays = {name: tensor.numpy() for name, tensor in conditioning.items()}
    return {"sample": sample.numpy(), "timestep": np.array([timestep]), **arrays}


def test_the_int8_graph_stays_close_and_says_how_it_was_made(
    exported: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    network, path = exported
    recipe = observe_onnx(path)
    recipe.save(tmp_path / "r.safetensors")
    assert Recipe.load(tmp_path / "r.safetensors").calibration["method"] == OBSERVED
    assert len(recipe.groups) == 1
    (quantized,) = write_onnx(path, recipe, tmp_path / "int8.onnx")
    assert check_model(quantized) == []
    facts = {entry.key: entry.value for entry in onnx.load(quantized).metadata_props}
    assert facts["accuquant.calibration"] == OBSERVED
    for timestep in (900, 10):
        feeds = feeds_of(network, 7, timestep)
        sample, conditioning = make_inputs(signature_of(network), seed=7)
        with torch.no_grad():
            expected = call(network, sample, torch.tensor(float(timestep)), conditioning).numpy()
        error = np.linalg.norm(run(quantized, feeds) - expected) / np.linalg.norm(expected)
        assert 1e-4 < error < 0.05


def test_layers_have_the_names_and_the_default_placement_of_the_pipeline(
    exported: tuple[nn.Module, Path],
) -> None:
    network, path = exported
    recipe = observe_onnx(path, calls=1)
    modules = dict(network.named_modules())
    assert set(recipe.layers) <= set(modules)
    for name, layer in recipe.layers.items():
        assert np.array_equal(layer.weight_shape, modules[name].weight.shape)
    excluded = ("conv_in", "conv_out", "time_emb")
    assert not [name for name in recipe.layers if name.startswith(excluded) or "time_emb" in name]
    expected = {
        name
        for name, module in modules.items()
        if isinstance(module, (nn.Conv2d, nn.Linear))
        and not name.startswith(excluded)
        and "time_emb" not in name
        and "shortcut" not in name
    }
    assert set(recipe.layers) == expected


def test_given_inputs_decide_the_scales(exported: tuple[nn.Module, Path], tmp_path: Path) -> None:
    network, path = exported
    one = feeds_of(network, 3, 500)
    many = {name: np.stack([array, array * 3]) for name, array in one.items() if name != "timestep"}
    many["timestep"] = np.array([[900], [1200]])
    np.savez(tmp_path / "one.npz", allow_pickle=True, **one)
    np.savez(tmp_path / "many.npz", allow_pickle=True, **many)
    single = observe_onnx(path, inputs=tmp_path / "one.npz", observer="minmax")
    several = observe_onnx(path, inputs=tmp_path / "many.npz", observer="minmax")
    assert several.calibration["settings"]["calls"] == 2
    assert several.groups.edges == (1201.0, 0.0)
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    text = np.abs(one["encoder_hidden_states"])
    layers = (single.layers[key], several.layers[key])
    for layer, limit in zip(layers, (text.max(), 3 * text.max()), strict=True):
        assert layer.activation_scale[0] == pytest.approx(limit / (128 - abs(layer.zero_point)), rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestep": None}, r"got arrays named encoder_hidden_states, sample, expected sample, timestep"),
        ({"sample": np.zeros((1, 5, 8, 8))}, r"'sample' of shape \[1, 5, 8, 8\], expected \[.*4, "),
        ({"timestep": np.zeros((3, 1)), "sample": np.zeros((2, 1, 4, 8, 8))}, r"arrays for \[2, 3\] calls"),
        ({"encoder_hidden_states": np.zeros((2, 1, 1, 1, 12))}, "'encoder_hidden_states' of shape"),
    ],
)
def test_inputs_that_do_not_fit_are_named(
    exported: tuple[nn.Module, Path], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    network, path = exported
    arrays = {k: v for k, v in (feeds_of(network, 3, 500) | change).items() if v is not None}
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(UsageError, match=message):
        observe_onnx(path, inputs=tmp_path / "in.npz")


def test_a_file_that_is_no_archive_of_arrays_is_refused(
    exported: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    (tmp_path / "in.npz").write_bytes(b"no")
    with pytest.raises(UsageError, match=r"expected an \.npz file of plain arrays"):
        observe_onnx(exported[1], inputs=tmp_path / "in.npz")


def save_graph(path: Path, nodes: list[Any], inputs: list[tuple[str, list[Any]]]) -> Path:
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, floats, shape) for name, shape in inputs],
        [helper.make_tensor_value_info("y", floats, [1, 4])],
        [onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_a_graph_that_is_no_denoising_network_is_refused(tmp_path: Path) -> None:
    node = onnx.helper.make_node("MatMul", ["a", "w"], ["y"])
    path = save_graph(tmp_path / "m.onnx", [node], [("a", [1, 4])])
    with pytest.raises(SourceError, match=r"got the inputs a, expected one of sample"):
        observe_onnx(path)


def test_a_graph_of_first_and_last_layers_has_nothing_to_quantize(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("Mul", ["sample", "timestep"], ["x"]),
        onnx.helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    path = save_graph(tmp_path / "m.onnx", nodes, [("sample", [1, 4]), ("timestep", [1])])
    with pytest.raises(SourceError, match="no layer with a constant weight between"):
        observe_onnx(path)


def convolutions(path: Path, middle: list[Any], *, half: bool = False, **constants: Array | int) -> Path:
    """Write sample -> a convolution -> the nodes `middle`, from h to r -> a convolution -> y."""
    rng = np.random.default_rng(0)
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    tensors = {
        "first.weight": rng.normal(0, 0.3, (8, 4, 3, 3)),
        "mid.weight": rng.normal(0, 0.15, (8, 8, 3, 3)),
        "last.weight": rng.normal(0, 0.1, (4, 8, 3, 3)),
        **constants,
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["sample", "first.weight"], ["h"], "first", pads=[1] * 4),
            *middle,
            helper.make_node("Conv", ["r", "last.weight"], ["p"], "last", pads=[1] * 4),
            helper.make_node("Mul", ["p", "timestep"], ["y"], "scaled"),
        ],
        "g",
        [
            helper.make_tensor_value_info("sample", kind, ["batch", 4, "height", "width"]),
            helper.make_tensor_value_info("timestep", kind, [1]),
        ],
        [helper.make_tensor_value_info("y", kind, ["batch", 4, "height", "width"])],
        [
            onnx.numpy_helper.from_array(np.asarray(array, np.float16 if half else np.float32), name)
            for name, array in tensors.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return path


def middle_convolution(source: str, output: str) -> Any:
    return onnx.helper.make_node("Conv", [source, "mid.weight"], [output], output, pads=[1] * 4)


SAMPLE = np.random.default_rng(1).normal(0, 1, (1, 4, 16, 16)).astype(np.float32)


def relative_error(path: Path, quantized: Path, dtype: type = np.float32) -> float:
    """Return the error of the quantized graph, run with optimizations as a user runs it."""
    sessions = [
        onnxruntime.InferenceSession(p, providers=["CPUExecutionProvider"]) for p in (path, quantized)
    ]
    feeds: dict[str, Array] = {"sample": SAMPLE.astype(dtype), "timestep": np.ones(1, dtype)}
    expected, result = (session.run(None, feeds)[0].astype(np.float32) for session in sessions)
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


def test_nodes_with_one_weight_are_one_layer(tmp_path: Path) -> None:
    node = onnx.helper.make_node
    first, second = middle_convolution("a", "b"), middle_convolution("c", "r")
    path = convolutions(
        tmp_path / "m.onnx",
        [node("Tanh", ["h"], ["a"]), first, node("Mul", ["b", "four"], ["c"]), second],
        four=4,
    )
    recipe = observe_onnx(path, calls=2, observer="minmax")
    assert list(recipe.layers) == ["mid"]
    layer = recipe.layers["mid"]
    assert layer.activation_scale[0] * (127 + abs(layer.zero_point)) > 2, "both inputs are seen"
    (quantized,) = write_onnx(path, recipe, tmp_path / "int8.onnx")
    assert relative_error(path, quantized) < 0.1


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("large", [0, 65536])
def test_a_network_in_float16_is_computed_in_the_precision_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any, large: int
) -> None:
    monkeypatch.setattr(widen_half, "_CAST_ABOVE", large)
    middle = [onnx.helper.make_node("Tanh", ["h"], ["a"]), middle_convolution("a", "r")]
    path = convolutions(tmp_path / "m.onnx", middle, half=True)
    recipe = observe_onnx(path, calls=2)
    single = observe_onnx(convolutions(tmp_path / "single.onnx", middle), calls=2)
    assert recipe.layers["mid"].fingerprint == single.layers["mid"].fingerprint
    assert recipe.layers["mid"].activation_scale[0] == pytest.approx(
        single.layers["mid"].activation_scale[0], rel=0.01
    )
    (quantized,) = write_onnx(path, recipe, tmp_path / "int8.onnx", precision=precision)
    model = onnx.load(quantized)
    assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {
        onnx.TensorProto.FLOAT16
    }
    if precision != "bf16":  # ONNX Runtime has no bfloat16 convolution
        assert relative_error(path, quantized, np.float16) < 0.1
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert bool(casts) == (precision != "fp16")


def test_half_precision_needs_types_that_can_be_inferred(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Gelu is ONNX Runtime's own operator; an exporter wrote a wrong shape beside it."""
    node = onnx.helper.make_node
    middle = [node("Gelu", ["h"], ["a"], "act", domain="com.microsoft"), middle_convolution("a", "r")]
    path = convolutions(tmp_path / "m.onnx", middle)
    model = onnx.load(path)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    recipe = observe_onnx(path, calls=1)
    (quantized,) = write_onnx(path, recipe, tmp_path / "int8.onnx")
    assert relative_error(path, quantized) < 0.1
    with pytest.raises(
        ExportError, match=r"node 'act' \(com\.microsoft\.Gelu\): got an output of unknown type"
    ):
        write_onnx(path, recipe, tmp_path / "int8.onnx", precision="fp16")
    model.graph.node[1].CopyFrom(node("Tanh", ["h"], ["a"], "act"))
    wrong = onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [None, 9, None, None])
    model.graph.value_info.append(wrong)
    onnx.save(model, path)
    (quantized,) = write_onnx(path, observe_onnx(path, calls=1), tmp_path / "int8.onnx", precision="fp16")
    assert relative_error(path, quantized) < 0.1
    assert not caplog.records


def test_an_operator_that_onnxruntime_does_not_have_is_named(tmp_path: Path) -> None:
    custom = onnx.helper.make_node("Foo", ["h"], ["a"], domain="my.ops")
    path = convolutions(tmp_path / "m.onnx", [custom, middle_convolution("a", "r")])
    model = onnx.load(path)
    model.opset_import.append(onnx.helper.make_opsetid("my.ops", 1))
    onnx.save(model, path)
    with pytest.raises(SourceError, match=r"ONNX Runtime cannot run \(.*Foo.*or give --recipe"):
        observe_onnx(path)


def test_a_layer_whose_input_is_not_finite_is_named(tmp_path: Path) -> None:
    middle = [onnx.helper.make_node("Log", ["h"], ["a"]), middle_convolution("a", "r")]
    with pytest.raises(UsageError, match=r"layer 'mid': got an input that is NaN or infinite.*--inputs"):
        observe_onnx(convolutions(tmp_path / "m.onnx", middle))


def test_a_layer_that_sees_only_zeros_stays_float(tmp_path: Path) -> None:
    node = onnx.helper.make_node
    middle = [
        node("Mul", ["h", "nothing"], ["a"]),
        middle_convolution("a", "b"),
        node("Conv", ["h", "other.weight"], ["c"], "other", pads=[1] * 4),
        node("Add", ["b", "c"], ["r"]),
    ]
    other = np.random.default_rng(4).normal(0, 0.1, (8, 8, 3, 3))
    constants: dict[str, Any] = {"nothing": 0, "other.weight": other}
    path = convolutions(tmp_path / "m.onnx", middle, **constants)
    assert list(observe_onnx(path).layers) == ["other"]
    path = convolutions(tmp_path / "m.onnx", [middle[0], middle_convolution("a", "r")], nothing=0)
    with pytest.raises(SourceError, match="nothing but zeros"):
        observe_onnx(path)
