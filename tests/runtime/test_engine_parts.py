"""Text encoder and autoencoder in an engine: small graphs whose results numpy computes too."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from accuquant._util.files import sha256_of_file
from accuquant.errors import EngineError, UsageError
from accuquant.manifest import Manifest
from accuquant.runtime.engine_part import engine_of
from accuquant.runtime.engine_parts import engine_parts
from accuquant.runtime.loop_profile import LoopProfile

RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((10, 6)).astype(np.float32)
WEIGHT = RNG.standard_normal((3, 4, 1, 1)).astype(np.float32)
CLIP = {"model_type": "clip_text_model", "hidden_size": 6, "num_attention_heads": 2, "vocab_size": 10}
VAE = {"_class_name": "AutoencoderKL", "latent_channels": 4, "scaling_factor": 0.5}
Graph = tuple[list[onnx.NodeProto], list[Any], list[Any], dict[str, np.ndarray]]


def text_graph() -> Graph:
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["hidden_states.0"]),
        helper.make_node("Mul", ["hidden_states.0", "two"], ["last_hidden_state"]),
        helper.make_node("ReduceMax", ["last_hidden_state", "axis"], ["pooler_output"], keepdims=0),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "t"])
    states = [
        helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["b", "t", 6]),
        helper.make_tensor_value_info("pooler_output", TensorProto.FLOAT, ["b", 6]),
        helper.make_tensor_value_info("hidden_states.0", TensorProto.FLOAT, ["b", "t", 6]),
    ]
    return nodes, [ids], states, {"table": TABLE, "two": np.float32(2), "axis": np.array([1])}


def image_graph(name: str, weight: np.ndarray) -> Graph:
    """A 1x1 convolution, from latents to images or back."""
    out, into = weight.shape[:2]
    return (
        [helper.make_node("Conv", [name, "weight"], ["result"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", into, "h", "w"])],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, ["b", out, "h", "w"])],
        {"weight": weight},
    )


def save(folder: Path, graph: Graph, config: dict[str, Any]) -> None:
    nodes, inputs, outputs, constants = graph
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    made = helper.make_graph(nodes, folder.name, inputs, outputs, tensors)
    folder.mkdir()
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(made, opset_imports=[opset], ir_version=10), folder / "model.onnx")
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def whole(make_folder: Callable[..., Path]) -> Path:
    """Return an exported folder with the parts around its network."""
    folder = make_folder(pipeline="StableDiffusionPipeline")
    save(folder / "text_encoder", text_graph(), CLIP)
    save(folder / "vae_decoder", image_graph("latent_sample", WEIGHT), VAE)
    encoder = np.concatenate([WEIGHT, WEIGHT]).transpose(1, 0, 2, 3)[:, :3].repeat(2, axis=0)
    save(folder / "vae_encoder", image_graph("sample", np.ascontiguousarray(encoder)), VAE)
    manifest = Manifest.load(folder)
    for part in ("text_encoder", "vae_decoder", "vae_encoder"):
        name = f"{part}/model.onnx"
        manifest.files[name] = sha256_of_file(folder / name)
    manifest.save(folder)
    return folder


def test_parts_are_compiled_in_the_precision_that_is_asked_for(whole: Path, compiled_in: list[str]) -> None:
    latents = torch.from_numpy(RNG.standard_normal((1, 4, 2, 2)).astype(np.float32))
    for precision, hint in (("bf16", "bf16"), ("fp32", "f32"), ("auto", "f32")):
        compiled_in.clear()
        parts = engine_parts(whole, precision=precision)
        (states,) = parts["text_encoder"](torch.tensor([[3, 1]]))[:1]
        (image,) = parts["vae"].decode(latents, return_dict=False)
        assert compiled_in == [hint, hint]
        np.testing.assert_allclose(states[0].numpy(), 2 * TABLE[[3, 1]], rtol=0.02, atol=0.02)
        expected = np.einsum("oc,nchw->nohw", WEIGHT[:, :, 0, 0], latents.numpy())
        np.testing.assert_allclose(image.numpy(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_text_encoder_answers_as_transformers_does(whole: Path, engine: str) -> None:
    encoder = engine_parts(whole, engine)["text_encoder"]
    ids = np.array([[1, 2, 3], [9, 0, 9]])
    states = 2 * TABLE[ids]
    found = encoder(torch.from_numpy(ids), output_hidden_states=True)
    np.testing.assert_allclose(found[0], states, rtol=1e-6)
    np.testing.assert_allclose(found.pooler_output, states.max(1), rtol=1e-6)
    np.testing.assert_allclose(found.hidden_states[0], TABLE[ids], rtol=1e-6)
    short = encoder(torch.from_numpy(ids[:1, :2]), return_dict=False)
    assert [tuple(tensor.shape) for tensor in short] == [(1, 2, 6), (1, 6)]
    assert encoder.config.hidden_size == 6
    assert engine_of(encoder) == engine
    assert engine_of(torch.nn.Identity()) is None


def test_an_autoencoder_answers_as_diffusers_does(whole: Path) -> None:
    vae = engine_parts(whole)["vae"]
    latents = RNG.standard_normal((2, 4, 5, 3)).astype(np.float32)
    expected = np.einsum("oc,bchw->bohw", WEIGHT[:, :, 0, 0], latents)
    np.testing.assert_allclose(vae.decode(torch.from_numpy(latents)).sample, expected, atol=1e-5)
    (image,) = vae.decode(torch.from_numpy(latents), return_dict=False)
    assert image.dtype == torch.float32
    mean = vae.encode(image).latent_dist.mean
    assert mean.shape == (2, 4, 5, 3)
    assert (vae.config.scaling_factor, vae.config.in_channels) == (0.5, 3), "its own, else the class's"


def test_a_part_works_in_the_dtype_of_its_pipeline(whole: Path) -> None:
    vae = engine_parts(whole)["vae"].to(torch.float16)
    assert vae.dtype == torch.float16
    assert vae.decode(torch.zeros(1, 4, 2, 2, dtype=torch.float16)).sample.dtype == torch.float16


def test_compiling_a_part_is_counted_apart_from_running_it(whole: Path) -> None:
    ticks = iter(range(1000))
    vae, profile = engine_parts(whole)["vae"], LoopProfile(lambda: float(next(ticks)))
    vae.profile = profile
    with profile.inside("decoder"):
        vae.decode(torch.zeros(1, 4, 2, 2))
    assert profile.seconds["loading"] == 2, "reading, and compiling for the shape"


def test_a_mask_is_refused_because_the_graph_has_no_input_for_it(whole: Path) -> None:
    encoder = engine_parts(whole)["text_encoder"]
    ids = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(UsageError, match=r"attention_mask of the text encoder: got a mask.*--parts torch"):
        encoder(ids, attention_mask=torch.ones_like(ids))


def test_a_part_can_neither_be_saved_nor_copied(whole: Path) -> None:
    with pytest.raises(UsageError, match=r"EngineAutoencoder\.save_pretrained"):
        engine_parts(whole)["vae"].save_pretrained("x")
    with pytest.raises(UsageError, match=r"copy.deepcopy\(EngineTextEncoder\)"):
        copy.deepcopy(engine_parts(whole)["text_encoder"])


def test_a_folder_without_parts_is_refused(make_folder: Callable[..., Path]) -> None:
    with pytest.raises(EngineError, match=r"got the network alone.*--whole-pipeline"):
        engine_parts(make_folder())


def test_a_damaged_folder_is_refused(whole: Path) -> None:
    (whole / "vae_decoder" / "model.onnx").write_bytes(b"")
    with pytest.raises(EngineError, match="other bytes than were exported"):
        engine_parts(whole)
    (whole / "text_encoder" / "config.json").write_text('{"model_type": "no such type"}')
    with pytest.raises(EngineError, match=r"configuration '.*config.json'.*run `accuquant export` again"):
        engine_parts(whole, check_hashes=False)
