import copy
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch.jit._trace import TracerWarning

from accuquant._util.files import sha256_of_file
from accuquant.errors import EngineError, UsageError
from accuquant.groups import StepGroups
from accuquant.manifest import Manifest
from accuquant.networks.signature import Signature, TensorSpec
from accuquant.runtime.engine_unet import EngineUNet

SIZES = {"batch": 2, "steps": 1, "height": 8, "width": 8}


class PlainOutput(torch.nn.Module):
    """Give torch.onnx.export positional tensors and one output tensor."""

    def __init__(self, network: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, *conditioning: torch.Tensor) -> Any:
        given: dict[str, Any] = dict(zip(self.names, conditioning, strict=True))
        added = {name: given.pop(name) for name in ("text_embeds", "time_ids") if name in given}
        if added:
            given["added_cond_kwargs"] = added
        return self.network(sample, timestep, return_dict=False, **given)[0]


def export_float(network: Any, folder: Path, conditioning: tuple[TensorSpec, ...]) -> Path:
    """Write an exported folder with the float network, as the export stage lays it out."""
    channels = network.config.in_channels
    signature = Signature(
        architecture=type(network).__name__,
        sample=TensorSpec("sample", ("batch", channels, "height", "width")),
        timestep=TensorSpec("timestep", ("steps",), "int64"),
        conditioning=conditioning,
        output=TensorSpec("out_sample", ("batch", channels, "height", "width")),
        sizes={**SIZES, "tokens": 4},
    )
    examples = [
        torch.zeros(spec.resolve(signature.sizes), dtype=getattr(torch, spec.dtype))
        for spec in signature.inputs
    ]
    names = [spec.name for spec in conditioning]
    (folder / "unet").mkdir(parents=True)
    # On networks of this size the TorchScript exporter is ten times as fast as its successor. It warns of
    # its age and of every Python branch in diffusers' forward.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", TracerWarning)
        torch.onnx.export(
            PlainOutput(network, names).eval(),
            tuple(examples),
            folder / "unet" / "model.onnx",
            dynamo=False,
            opset_version=18,
            input_names=["sample", "timestep", *names],
            output_names=["out_sample"],
            dynamic_axes={name: {0: "batch"} for name in ("sample", *names, "out_sample")},
        )
    (folder / "unet" / "config.json").write_text(network.to_json_string())
    Manifest(
        pipeline_class="DDIMPipeline",
        component="unet",
        lowering="rescale",
        precision="fp32",
        opset=18,
        graphs=("unet/model.onnx",),
        groups=StepGroups((1000.0, 0.0)),
        signature=signature,
        model_hash="0",
        num_inference_steps=10,
        accuquant_version="0.1.0",
        files={"unet/model.onnx": sha256_of_file(folder / "unet" / "model.onnx")},
    ).save(folder)
    return folder


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    """Keep torch's threads from spinning beside the engine's: these networks are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    ).eval()


@pytest.fixture(scope="module")
def folder(unet: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_float(unet, tmp_path_factory.mktemp("unconditional") / "out", ())


@pytest.fixture
def engine(folder: Path) -> EngineUNet:
    return EngineUNet.from_pretrained(folder, num_threads=1)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.mark.parametrize("engine_name", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(
    ("pipeline", "scheduler"), [(DDIMPipeline, DDIMScheduler), (DDPMPipeline, DDPMScheduler)]
)
def test_a_pipeline_with_the_engine_equals_the_float_pipeline(
    engine_name: str, pipeline: Any, scheduler: Any, unet: Any, folder: Path
) -> None:
    pipe = pipeline(unet=unet, scheduler=scheduler())
    pipe.set_progress_bar_config(disable=True)
    call = {"batch_size": 3, "num_inference_steps": 5, "output_type": "np"}
    expected = pipe(generator=generators(3), **call).images
    pipe.unet = EngineUNet.from_pretrained(folder, engine=engine_name)
    images = pipe(generator=generators(3), **call).images
    np.testing.assert_allclose(images, expected, atol=1e-4)
    assert expected.std() > 0.05


def test_a_saved_pipeline_loads_with_the_engine_in_place(
    unet: Any, engine: EngineUNet, tmp_path: Path
) -> None:
    DDIMPipeline(unet=unet, scheduler=DDIMScheduler()).save_pretrained(tmp_path)
    pipe = DDIMPipeline.from_pretrained(tmp_path, unet=engine)
    assert pipe.unet is engine
    assert pipe.unet.config.in_channels == 3
    with pytest.raises(UsageError, match="Copy the exported folder"):
        pipe.unet.save_pretrained(tmp_path)


def test_what_an_engine_cannot_do_says_what_to_do_instead(engine: EngineUNet) -> None:
    with pytest.raises(UsageError, match="accuquant calibrate --lora"):
        engine.load_lora_adapter({}, prefix="unet")
    with pytest.raises(UsageError, match=r"Call EngineUNet\.from_pretrained\(folder\) again"):
        copy.deepcopy(engine)


def test_config_reads_like_the_original(unet: Any, engine: EngineUNet) -> None:
    assert engine.config.sample_size == 8
    assert engine.config["block_out_channels"] == [8, 16]
    assert set(unet.config) - {"_use_default_values"} <= set(engine.config)
    assert isinstance(engine.config, type(unet.config))


def test_an_older_config_gets_the_defaults_of_the_class(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "old")
    path = tmp_path / "old" / "unet" / "config.json"
    config = json.loads(path.read_text())
    del config["class_embed_type"], config["sample_size"]
    path.write_text(json.dumps(config))
    engine = EngineUNet.from_pretrained(tmp_path / "old")
    assert engine.config.class_embed_type is None
    path.write_text("{")
    with pytest.raises(EngineError, match="expected the JSON that diffusers writes"):
        EngineUNet.from_pretrained(tmp_path / "old")


def test_dtype_and_device_follow_the_pipeline(engine: EngineUNet, unet: Any) -> None:
    assert (engine.dtype, engine.device) == (torch.float32, torch.device("cpu"))
    pipe = DDIMPipeline(unet=engine, scheduler=DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    pipe.to(torch.bfloat16)
    assert engine.dtype == torch.bfloat16
    pipe.to("cpu", torch.float32)
    assert engine.dtype == torch.float32
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        sample = torch.randn(2, 3, 8, 8, generator=generators(1)[0]).to(dtype)
        output = engine(sample, 10).sample
        assert output.dtype == dtype
        expected = unet(sample.float(), 10).sample.detach()
        torch.testing.assert_close(output.float(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    "timestep",
    [10, 10.0, torch.tensor(10), torch.tensor([10]), torch.full((2,), 10.0), np.int64(10)],
    ids=repr,
)
def test_takes_a_timestep_in_every_form(timestep: Any, engine: EngineUNet, unet: Any) -> None:
    sample = torch.randn(2, 3, 8, 8, generator=generators(1)[0])
    expected = unet(sample, torch.tensor(10)).sample.detach()
    torch.testing.assert_close(engine(sample, timestep).sample, expected, atol=1e-4, rtol=1e-4)


def test_returns_the_original_output_class_or_a_tuple(engine: EngineUNet) -> None:
    sample = torch.zeros(2, 3, 8, 8)
    output = engine(sample, 10)
    assert isinstance(output, UNet2DOutput)
    (plain,) = engine(sample, 10, None, False)  # UNet2DModel: class_labels, return_dict
    torch.testing.assert_close(plain, output.sample)
    assert not output.sample.requires_grad


def test_refuses_different_timesteps_in_one_batch(engine: EngineUNet) -> None:
    with pytest.raises(UsageError, match="got 2 different values in one batch"):
        engine(torch.zeros(2, 3, 8, 8), torch.tensor([10, 20]))


def test_refuses_a_timestep_outside_the_calibrated_range(engine: EngineUNet) -> None:
    with pytest.raises(UsageError, match="timestep 1001: got a value outside the calibrated range"):
        engine(torch.zeros(2, 3, 8, 8), 1001)


def test_refuses_arguments_that_the_graph_cannot_honour(engine: EngineUNet) -> None:
    sample = torch.zeros(2, 3, 8, 8)
    with pytest.raises(UsageError, match=r"argument 'class_labels': got a value.*takes no conditioning"):
        engine(sample, 10, class_labels=torch.tensor([0, 1]))
    with pytest.raises(TypeError, match="unexpected keyword argument 'encoder_hidden_states'"):
        engine(sample, 10, encoder_hidden_states=sample)


@pytest.fixture(scope="module")
def text_unet() -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 12,
    ).eval()


@pytest.fixture(scope="module")
def text_engine(text_unet: Any, tmp_path_factory: pytest.TempPathFactory) -> EngineUNet:
    conditioning = (
        TensorSpec("encoder_hidden_states", ("batch", "tokens", 16)),
        TensorSpec("text_embeds", ("batch", 12)),
        TensorSpec("time_ids", ("batch", 6)),
    )
    folder = export_float(text_unet, tmp_path_factory.mktemp("text") / "out", conditioning)
    return EngineUNet.from_pretrained(folder)


def text_inputs(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    g = generators(1)[0]
    return {
        "encoder_hidden_states": torch.randn(2, 4, 16, generator=g).to(dtype),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(2, 12, generator=g).to(dtype),
            "time_ids": torch.tensor([[8, 8, 0, 0, 8, 8]] * 2, dtype=dtype),
        },
    }


def test_a_text_conditioned_network_takes_what_an_sdxl_pipeline_passes(
    text_unet: Any, text_engine: EngineUNet
) -> None:
    sample = torch.randn(2, 4, 8, 8, generator=generators(1)[0])
    given = text_inputs()
    expected = text_unet(sample, 10, **given).sample.detach()
    output = text_engine(sample, torch.tensor(10), timestep_cond=None, cross_attention_kwargs=None, **given)
    assert isinstance(output, UNet2DConditionOutput)
    torch.testing.assert_close(output.sample, expected, atol=1e-4, rtol=1e-4)
    positional = text_engine(sample, 10, given.pop("encoder_hidden_states"), **given, return_dict=False)[0]
    torch.testing.assert_close(positional, output.sample)
    assert text_engine.add_embedding.linear_1.in_features == text_unet.add_embedding.linear_1.in_features


@pytest.mark.parametrize(
    "extra",
    [
        {"cross_attention_kwargs": {"scale": 0.5}},
        {"down_block_additional_residuals": (torch.zeros(1),)},
        {"mid_block_additional_residual": torch.zeros(1)},
        {"encoder_attention_mask": torch.ones(2, 4)},
        {"timestep_cond": torch.zeros(2, 4)},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_refuses_control_and_masks_instead_of_ignoring_them(text_engine: EngineUNet, extra: Any) -> None:
    with pytest.raises(UsageError, match=f"argument '{next(iter(extra))}'.*takes encoder_hidden_states"):
        text_engine(torch.zeros(2, 4, 8, 8), 10, **text_inputs(), **extra)


def test_refuses_added_conditioning_that_the_graph_does_not_take(text_engine: EngineUNet) -> None:
    given = text_inputs()
    given["added_cond_kwargs"]["image_embeds"] = torch.zeros(2, 4)
    with pytest.raises(UsageError, match="argument 'image_embeds'"):
        text_engine(torch.zeros(2, 4, 8, 8), 10, **given)


def test_refuses_an_architecture_without_a_drop_in(make_folder: Callable[..., Any]) -> None:
    folder = make_folder(unet={"_class_name": "UNet1DModel"})
    with pytest.raises(
        EngineError, match=r"network UNet1DModel.*expected UNet2DModel or UNet2DConditionModel"
    ):
        EngineUNet.from_pretrained(folder)
