"""A whole UNet: traced, quantized, and compared with PyTorch under hooks that quantize."""

from __future__ import annotations

import copy
import json
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
from onnx import TensorProto
from torch import nn

from accuquant.errors import ExportError
from accuquant.export import check_model, write_onnx, write_pipeline
from accuquant.export.export_options import Lowering
from accuquant.export.read.trace import trace
from accuquant.networks.network import signature_of
from accuquant.qparams import WEIGHT_AXIS, LayerQParams, fingerprint
from accuquant.recipe import Recipe

KINDS: dict[type[nn.Module], str] = {nn.Conv2d: "conv2d", nn.Linear: "linear"}
SCALES = np.array([0.03, 0.02, 0.015], np.float32)


@pytest.fixture(scope="session")
def unet(make_unet: Callable[..., nn.Module]) -> nn.Module:
    return make_unet()


@pytest.fixture(scope="session")
def two_level_unet(make_unet: Callable[..., nn.Module]) -> nn.Module:
    return make_unet(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


@pytest.fixture(scope="session")
def float_onnx(unet: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unet") / "float.onnx"
    ir.save(trace(unet, signature_of(unet)), path)
    return path


def quantizable(network: nn.Module) -> dict[str, nn.Module]:
    modules = {name: module for name, module in network.named_modules() if type(module) in KINDS}
    return {name: module for name, module in modules.items() if "time_emb" not in name}


def make_layers(network: nn.Module, *, zero_point: int = 0) -> list[LayerQParams]:
    """Qparams of every layer but the time embedding; zero-points where a SiLU comes before."""
    layers = []
    for name, module in quantizable(network).items():
        weight = module.get_parameter("weight").detach().numpy()
        kind = KINDS[type(module)]
        scale = np.abs(weight).max(axis=tuple(range(1, weight.ndim))) / 127
        z = zero_point if name.endswith(("conv1", "conv2")) else 0
        layers.append(
            LayerQParams(name, kind, weight.shape, fingerprint(weight), scale, SCALES, zero_point=z)
        )
        assert WEIGHT_AXIS[kind] == 0
    return layers


def fake_quantized(network: nn.Module, layers: list[LayerQParams], group: int) -> nn.Module:
    """Copy `network` with hooks that quantize by the definition, in float32 torch."""
    network = copy.deepcopy(network)
    modules = dict(network.named_modules())
    for layer in layers:
        module = modules[layer.name]
        shape = [-1] + [1] * (len(layer.weight_shape) - 1)
        weight_scale = torch.from_numpy(layer.weight_scale).reshape(shape)
        scale, z = torch.tensor(layer.activation_scale[group]), layer.zero_point

        def quantize(_: nn.Module, inputs: Any, scale: Any = scale, z: int = z) -> Any:
            return ((inputs[0] / scale).round().add(z).clamp(-128, 127).sub(z) * scale,)

        with torch.no_grad():
            module.weight.copy_((module.weight / weight_scale).round().clamp(-128, 127) * weight_scale)
        module.register_forward_pre_hook(quantize)
    return network


def relative_error(result: Any, expected: Any) -> float:
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


def test_the_float_graph_takes_any_batch_size_and_image_size(
    unet: nn.Module, float_onnx: Path, run_graph: Any
) -> None:
    inputs = onnx.load(float_onnx).graph.input
    named = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in inputs
    }
    assert named == {"sample": ["batch", 1, "height", "width"], "timestep": ["steps"]}
    assert_same_function(unet, float_onnx, run_graph)


@pytest.mark.slow
def test_a_unet_with_levels_takes_any_size_that_they_divide(
    two_level_unet: nn.Module, tmp_path: Path, run_graph: Any
) -> None:
    path = tmp_path / "float.onnx"
    ir.save(trace(two_level_unet, signature_of(two_level_unet)), path)
    assert_same_function(two_level_unet, path, run_graph)


def assert_same_function(network: nn.Module, path: Path, run_graph: Any) -> None:
    for shape, timestep in (((1, 1, 8, 8), [3]), ((3, 1, 12, 16), [700]), ((2, 1, 8, 8), [700, 5])):
        sample = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        with torch.no_grad():
            expected = network(torch.from_numpy(sample), timestep[0]).sample.numpy()
        np.testing.assert_allclose(run_graph(path, sample, timestep), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_text_conditioning_becomes_graph_inputs(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()
    path = tmp_path / "float.onnx"
    ir.save(trace(network, signature_of(network)), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["sample", "timestep", "encoder_hidden_states"]
    rng = np.random.default_rng(0)
    for batch, size, tokens in ((1, 8, 77), (3, 12, 5)):
        sample = rng.normal(size=(batch, 4, size, 8)).astype(np.float32)
        text = rng.normal(size=(batch, tokens, 8)).astype(np.float32)
        feed = {"sample": sample, "timestep": np.array([7.0], np.float32), "encoder_hidden_states": text}
        with torch.no_grad():
            expected = network(torch.from_numpy(sample), 7, torch.from_numpy(text)).sample.numpy()
        np.testing.assert_allclose(session.run(None, feed)[0], expected, rtol=1e-4, atol=1e-5)


def test_fixed_sizes_are_those_of_the_signature(make_unet: Callable[..., nn.Module], tmp_path: Path) -> None:
    network = make_unet()
    path = tmp_path / "static.onnx"
    ir.save(trace(network, signature_of(network), dynamic=False), path)
    shapes = [
        [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*onnx.load(path).graph.input, *onnx.load(path).graph.output)
    ]
    assert shapes == [[1, 1, 8, 8], [1], [1, 1, 8, 8]]


def test_a_network_that_cannot_be_traced_is_an_export_error(unet: nn.Module) -> None:
    class Branching(nn.Module):
        def forward(self, sample: Any, timestep: Any, return_dict: bool = True) -> Any:
            return (sample if sample.sum() > 0 else -sample,)

    with pytest.raises(ExportError, match=r"network Branching: got \w+ from torch\.onnx\.export"):
        trace(Branching(), signature_of(unet))


@pytest.mark.parametrize("zero_point", [0, -100])
@pytest.mark.parametrize("lowering", ["rescale", "per-group"])
def test_each_layer_of_the_unet_is_the_fake_quantized_one(
    unet: nn.Module, float_onnx: Path, recipe_of: Any, tmp_path: Path, lowering: Lowering, zero_point: int
) -> None:
    """Layer by layer on the graph's own inputs: a value that rounds the other way changes all behind it."""
    layers = make_layers(unet, zero_point=zero_point)
    recipe = recipe_of(*layers, signature=signature_of(unet))
    graphs = write_onnx(float_onnx, recipe, tmp_path / "int8.onnx", lowering=lowering)
    sample = np.random.default_rng(1).normal(size=(2, 1, 8, 12)).astype(np.float32)
    for group, timestep in enumerate((900, 300, 10)):
        reference = dict(fake_quantized(unet, layers, group).named_modules())
        path = graphs[0 if lowering == "rescale" else group]
        seen = inputs_and_outputs(path, sample, timestep)
        assert {layer.name for layer in layers} - set(seen) <= {
            name for name in reference if name.endswith(("to_k", "to_v"))
        }
        for name, (source, result) in seen.items():
            with torch.no_grad():
                expected = reference[name](torch.from_numpy(source)).numpy()
            assert relative_error(result, expected) < 1e-3, name


def inputs_and_outputs(path: Path, sample: Any, timestep: float) -> dict[str, tuple[Any, Any]]:
    """Run a quantized graph -> for each layer with a QDQ pair of its own, its float input and its output."""
    model = onnx.load(path)
    nodes = list(model.graph.node)
    readers = {name: node for node in nodes for name in node.input}
    ends: dict[str, tuple[str, str]] = {}
    for layer in {n.name.split("/input/")[0] for n in nodes if n.name.endswith("/input/QuantizeLinear")}:
        source = next(n for n in nodes if n.name.startswith(f"{layer}/input/") and "Factor" not in n.name)
        node = next(n for n in nodes if any(e.value == layer for e in n.metadata_props))
        last = node
        while last.output[0] in readers and is_tail(readers[last.output[0]], layer, node):
            last = readers[last.output[0]]
        ends[layer] = (source.input[0], last.output[0])
    names = sorted({name for pair in ends.values() for name in pair} - {"sample", "out_sample"})
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    data = Path(path).with_name("opened.onnx")
    onnx.save(model, data)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    results = session.run(
        ["out_sample", *names], {"sample": sample, "timestep": np.array([timestep], np.float32)}
    )
    values = {"sample": sample, **dict(zip(["out_sample", *names], results, strict=True))}
    return {layer: (values[source], values[last]) for layer, (source, last) in ends.items()}


def is_tail(node: onnx.NodeProto, layer: str, core: onnx.NodeProto) -> bool:
    """Say whether `node` belongs to the layer: what undoes the scale, or the bias of a MatMul."""
    return node.name.startswith(f"{layer}/output/") or (
        core.op_type == "MatMul" and node.op_type == "Add" and core.output[0] in node.input
    )


def test_every_quantized_file_says_what_it_is_and_breaks_no_rule(
    unet: nn.Module, float_onnx: Path, recipe_of: Any, tmp_path: Path
) -> None:
    recipe = recipe_of(*make_layers(unet, zero_point=-100), signature=signature_of(unet))
    for precision in ("fp32", "fp16"):
        for lowering in ("rescale", "per-group"):
            output = tmp_path / f"{lowering}-{precision}.onnx"
            written = write_onnx(float_onnx, recipe, output, lowering=lowering, precision=precision)
            graphs = [path for path in written if path.suffix == ".onnx"]
            for group, path in enumerate(graphs):
                assert check_model(path) == []
                facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
                assert facts["accuquant.lowering"] == lowering
                assert facts["accuquant.precision"] == precision
                assert json.loads(facts["accuquant.group_edges"]) == [1000.0, 500.5, 100.0, 0.0]
                assert json.loads(facts["accuquant.signature"]) == recipe.signature.to_dict()
                assert facts["accuquant.recipe_sha256"] == recipe.sha256()
                assert facts.get("accuquant.group") == (None if lowering == "rescale" else str(group))


def test_half_precision_keeps_the_timestep_and_the_softmax_in_float32(
    two_level_unet: nn.Module, recipe_of: Any, run_graph: Any, tmp_path: Path
) -> None:
    sample = np.random.default_rng(0).normal(size=(2, 1, 8, 8)).astype(np.float32)
    float_path = tmp_path / "float.onnx"
    export_with_torchscript(two_level_unet, torch.from_numpy(sample), float_path)
    recipe = recipe_of(signature=signature_of(two_level_unet))
    (path,) = write_onnx(float_path, recipe, tmp_path / "half.onnx", precision="fp16")
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type in ("Sin", "Cos", "Softmax", "InstanceNormalization"):
            assert kinds[node.output[0]] == TensorProto.FLOAT
        if node.op_type in ("Conv", "Gemm", "Resize"):
            assert kinds.get(node.output[0], TensorProto.FLOAT16) == TensorProto.FLOAT16
    assert {node.op_type for node in model.graph.node} >= {"Sin", "Softmax", "Resize", "Gemm"}
    result = run_graph(path, sample, [999])
    assert result.dtype == np.float32
    assert relative_error(result, run_graph(float_path, sample, [999])) < 5e-3


@pytest.mark.parametrize("exporter", ["torchscript", "other names"])
def test_layers_are_found_in_graphs_of_other_exporters(
    make_unet: Callable[..., nn.Module], recipe_of: Any, run_graph: Any, tmp_path: Path, exporter: str
) -> None:
    network = make_unet()
    path = tmp_path / "float.onnx"
    sample = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    if exporter == "torchscript":
        export_with_torchscript(network, sample, path)
    else:
        ir.save(anonymous(trace(network, signature_of(network), dynamic=False)), path)
        sample = sample[:1]
    layers = make_layers(network)
    (written,) = write_onnx(path, recipe_of(*layers, signature=signature_of(network)), tmp_path / "int8.onnx")
    with torch.no_grad():
        expected = fake_quantized(network, layers, 1)(sample, 300).sample.numpy()
    result = run_graph(written, sample.numpy(), [300])
    assert relative_error(result, expected) < 0.01


def export_with_torchscript(network: nn.Module, sample: torch.Tensor, path: Path) -> None:
    class Positional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = network

        def forward(self, sample: Any, timestep: Any) -> Any:
            return self.unet(sample, timestep, return_dict=False)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Positional().eval(),
            (sample, torch.tensor([3])),
            path,
            dynamo=False,
            opset_version=17,
            input_names=["sample", "timestep"],
            output_names=["out_sample"],
        )


def anonymous(model: ir.Model) -> ir.Model:
    """Number every node and tensor, as a tool that rewrites graphs does."""
    for number, node in enumerate(model.graph):
        node.name = f"n{number}"
        node.metadata_props.clear()
    for number, value in enumerate(list(model.graph.initializers.values())):
        value.name = f"t{number}"
    return model


def test_weights_take_a_quarter_and_groups_share_them(
    unet: nn.Module, float_onnx: Path, recipe_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accuquant.export.write.graph_files._EXTERNAL_ABOVE", 256)
    recipe = recipe_of(*make_layers(unet), signature=signature_of(unet))
    written = write_onnx(float_onnx, recipe, tmp_path / "int8.onnx", lowering="per-group")
    *graphs, data = written
    weights = sum(
        layer.weight_shape[0] * int(np.prod(layer.weight_shape[1:])) for layer in recipe.layers.values()
    )
    assert [path.name for path in graphs] == [f"int8_group_0{group}.onnx" for group in range(3)]
    tensors = onnx.load(graphs[0], load_external_data=False).graph.initializer
    levels = [tensor for tensor in tensors if tensor.name.endswith("/levels")]
    assert {tensor.data_type for tensor in levels} == {TensorProto.INT8}
    assert sum(int(np.prod(tensor.dims)) for tensor in levels) == weights
    outside = [tensor for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL]
    assert {tensor.name for tensor in outside} >= {t.name for t in levels if int(np.prod(t.dims)) > 256}
    lengths = [
        int(entry.value) for tensor in outside for entry in tensor.external_data if entry.key == "length"
    ]
    assert data.stat().st_size == sum(lengths)
    for path in graphs:
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def make_recipe_for(source: Any, recipe_of: Any) -> Recipe:
    recipe: Recipe = recipe_of(*make_layers(source.network), signature=source.signature)
    return recipe


@pytest.mark.parametrize("lowering", ["rescale", "per-group"])
def test_a_pipeline_becomes_a_folder_that_the_manifest_describes(
    tiny_source: Any, recipe_of: Any, tmp_path: Path, lowering: Lowering
) -> None:
    recipe = make_recipe_for(tiny_source, recipe_of)
    steps: list[tuple[str, float]] = []
    manifest = write_pipeline(
        tiny_source,
        recipe,
        tmp_path / "out",
        lowering=lowering,
        dynamic=False,
        progress=lambda text, share: steps.append((text, share)),
    )
    out = tmp_path / "out"
    manifest.check_files(out)
    graphs = ["unet/model.onnx"] if lowering == "rescale" else [f"unet/group_0{g}.onnx" for g in range(3)]
    assert list(manifest.graphs) == graphs
    present = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert present >= {
        *graphs,
        "model_index.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "recipe.safetensors",
        "accuquant.json",
    }
    assert Recipe.load(out / "recipe.safetensors").sha256() == recipe.sha256()
    shares = [share for _, share in steps]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_replaces_an_export_and_nothing_else(
    tiny_source: Any, recipe_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe_for(tiny_source, recipe_of)
    out = tmp_path / "out"
    write_pipeline(tiny_source, recipe, out, dynamic=False)
    before = (out / "unet" / "model.onnx").read_bytes()

    monkeypatch.setattr("accuquant.export.write.graph_files.save_inline", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_pipeline(tiny_source, recipe, out, dynamic=False)
    assert (out / "unet" / "model.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    with pytest.raises(ExportError, match="a folder with other files"):
        write_pipeline(tiny_source, recipe, tmp_path / "photos", dynamic=False)
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"cat"


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")
