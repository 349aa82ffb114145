"""Engines of every part of a pipeline: which, of which shapes, and that the compiler takes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from accuquant._util.files import sha256_of_file
from accuquant.bundled import FASHION_TEXT
from accuquant.cli.main import main
from accuquant.engine_manifest import EngineManifest
from accuquant.engines.jobs import list_jobs
from accuquant.engines.options import ShapeRange
from accuquant.errors import EngineError, UsageError
from accuquant.groups import StepGroups
from accuquant.manifest import Manifest
from accuquant.networks.signature import Dim, Signature, TensorSpec
from accuquant.runtime import engine_files
from accuquant.runtime.engine_parts import engine_parts

PARTS = {
    "text_encoder": ("input_ids", "int64", ("b", "t"), {"max_position_embeddings": 77}),
    "text_encoder_2": ("input_ids", "int64", ("b", "t"), {"d_model": 16}),
    "vae_decoder": ("latent_sample", "float32", ("b", 4, "h", "w"), {"block_out_channels": [8, 8, 8]}),
    "vae_encoder": ("sample", "float32", ("b", 3, "h", "w"), {"block_out_channels": [8, 8, 8]}),
}
RTX = ["--backend", "tensorrt_rtx", "--target", "sm89"]
Sides = dict[str, int]


@pytest.fixture
def whole(tmp_path: Path, make_conv: Callable[..., Path]) -> Path:
    """An exported folder with a network and four parts of one node each."""
    return make_whole(tmp_path / "out", make_conv(), {"batch": 1, "height": 8, "width": 12})


def signature(shape: tuple[Dim, ...], sizes: Sides) -> Signature:
    image, timestep = TensorSpec("x", shape), TensorSpec("timestep", (1,))
    return Signature("UNet2DConditionModel", image, timestep, (), image, sizes)


def make_whole(folder: Path, network: Path, sizes: Sides) -> Path:
    from onnx import TensorProto, helper, save

    kinds = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
    for part, (name, kind, shape, config) in PARTS.items():
        value = [helper.make_tensor_value_info(n, kinds[kind], shape) for n in (name, "out")]
        graph = helper.make_graph([helper.make_node("Identity", [name], ["out"])], part, value[:1], value[1:])
        (folder / part).mkdir(parents=True)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        save(model, folder / part / "model.onnx")
        (folder / part / "config.json").write_text(json.dumps(config))
    (folder / "unet").mkdir()
    (folder / "unet" / "model.onnx").write_bytes(network.read_bytes())
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    Manifest(
        pipeline_class="StableDiffusionPipeline", component="unet", lowering="rescale", precision="fp32",
        opset=21, graphs=("unet/model.onnx",), groups=StepGroups((1000.0, 0.0)),
        signature=signature(("batch", 4, "height", "width"), sizes),
        model_hash="0" * 64, num_inference_steps=2, accuquant_version="0",
        files={path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files},
    ).save(folder)  # fmt: skip
    return folder


@pytest.mark.usefixtures("rtx_by_name")
def test_each_part_has_a_job_of_the_shapes_that_the_pipeline_calls_it_with(whole: Path) -> None:
    jobs = list_jobs(whole, targets="sm89", backend="tensorrt_rtx", batch_size=2, parts="all")
    profiles = {job.part: job.options.profile for job in jobs}
    assert profiles[""] == {"x": ShapeRange.fixed((2, 4, 8, 8))}
    assert profiles["text_encoder"]["input_ids"] == ShapeRange((1, 77), (2, 77), (2, 77))
    assert profiles["text_encoder_2"]["input_ids"].max == (2, 512)
    assert profiles["vae_decoder"]["latent_sample"].max == (2, 4, 8, 12)
    assert profiles["vae_encoder"]["sample"].max == (2, 3, 32, 48)
    engines = {job.part: job.engine.relative_to(whole).as_posix() for job in jobs}
    assert engines[""] == "engines/sm89/tensorrt_rtx/model.engine"
    assert engines["vae_decoder"] == "engines/sm89/tensorrt_rtx/vae_decoder.engine"
    assert jobs[-1].rebuild == (
        f"accuquant build {whole} --backend tensorrt_rtx --batch-size 2 --parts vae_encoder --target sm89"
    )


@pytest.mark.usefixtures("rtx_by_name")
def test_parts_are_chosen_by_name_and_others_refused(whole: Path, make_conv: Callable[..., Path]) -> None:
    def parts(given: str) -> list[str]:
        return [job.part for job in list_jobs(whole, targets="sm89", backend="tensorrt_rtx", parts=given)]

    assert parts("network") == [""]
    assert parts("vae_decoder, text_encoder") == ["", "vae_decoder", "text_encoder"]
    with pytest.raises(UsageError, match=r"parts 'vae'.*all or network or text_encoder or"):
        parts("vae")
    with pytest.raises(UsageError, match=r"--parts text_encoder: got one graph"):
        list_jobs(make_conv(), targets="sm89", backend="tensorrt_rtx", parts="text_encoder")


@pytest.mark.usefixtures("rtx_by_name")
def test_a_network_of_packed_patches_takes_the_autoencoders_own_size(
    tmp_path: Path, make_conv: Callable[..., Path]
) -> None:
    folder = make_whole(tmp_path / "out", make_conv(), {"batch": 1, "height": 8, "width": 8})
    packed = signature(("batch", "patches", 4), {"patches": 16})
    replace(Manifest.load(folder), signature=packed).save(folder)
    jobs = {"targets": "sm89", "backend": "tensorrt_rtx", "parts": "vae_decoder", "opt_shapes": "x:1x4x8x8"}
    with pytest.raises(UsageError, match=r"part 'vae_decoder': got a network of packed patches"):
        list_jobs(folder, **jobs)  # type: ignore[arg-type]
    (folder / "vae_decoder" / "config.json").write_text('{"block_out_channels": [8, 8], "sample_size": 64}')
    manifest = Manifest.load(folder)
    digest = sha256_of_file(folder / "vae_decoder" / "config.json")
    replace(manifest, files={**manifest.files, "vae_decoder/config.json": digest}).save(folder)
    job = list_jobs(folder, **jobs)[1]  # type: ignore[arg-type]
    assert job.options.profile["latent_sample"].max == (1, 4, 32, 32)


def test_tensorrt_runs_the_engine_of_each_part_and_names_one_that_is_missing(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = SimpleNamespace(target="sm89", name="a GPU", capability=(8, 9))
    monkeypatch.setattr(engine_files, "find_gpu", lambda: gpu)
    found = SimpleNamespace(find_spec=lambda name: name if name == "tensorrt_rtx" else None)
    monkeypatch.setattr(engine_files, "importlib", SimpleNamespace(util=found))
    with pytest.raises(
        EngineError, match=r"expected engines of text_encoder/model.onnx for sm89.*accuquant build"
    ):
        engine_parts(whole, "tensorrt")
    place = whole / "engines" / "sm89" / "tensorrt_rtx" / "vae_decoder.engine"
    place.parent.mkdir(parents=True)
    place.touch()
    model = whole / "vae_decoder" / "model.onnx"
    manifest = EngineManifest(
        "0" * 64, 0, {"model.onnx": sha256_of_file(model)}, "", "tensorrt_rtx", "1", "sm89", {}, 1.0, "", "0"
    )
    manifest.save(place)
    assert engine_files.find_part_engine(whole, Manifest.load(whole), "vae_decoder") == place
    EngineManifest(**{**vars(manifest), "model_files": {"model.onnx": "1" * 64}}).save(place)
    with pytest.raises(EngineError, match="an engine of another export"):
        engine_files.find_part_engine(whole, Manifest.load(whole), "vae_decoder")


@pytest.mark.slow
@pytest.mark.trt
@pytest.mark.parametrize("text_weights", ["fp32", "int8"])
def test_every_part_of_the_bundled_text_pipeline_compiles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text_weights: str
) -> None:
    source, recipe, out = (
        str(FASHION_TEXT),
        str(tmp_path / "r.safetensors"),
        tmp_path / "out",
    )
    tiny = ["--steps", "2", "--group-size", "2", "--num-trajectories", "1", "--batch-size", "1"]
    fast = [
        "--iterations",
        "0",
        "--shared-iterations",
        "0",
        "--no-probe",
        "--rounding",
        "nearest",
        "--prompt",
        "a red shirt",
    ]
    assert main(["calibrate", source, "-o", recipe, *tiny, *fast]) == 0
    export = ["export", source, "--recipe", recipe, "--target", "cpu", "-o", str(out)]
    assert main([*export, "--whole-pipeline", "--text-weights", text_weights]) == 0
    capsys.readouterr()
    assert main(["build", str(out), *RTX, "--json", "-"]) == 0
    built = json.loads(capsys.readouterr().out)
    names = {Path(engine["engine"]).stem for engine in built}
    assert names == {"model", "text_encoder", "vae_encoder", "vae_decoder"}
    for engine in built:
        EngineManifest.load(Path(engine["engine"])).check_engine(Path(engine["engine"]))
        assert engine["bytes"] > 0
