"""The commands one after the other on a tiny pipeline, through the demo and one by one."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from accuquant.cli import demo
from accuquant.cli.main import main
from accuquant.engine_manifest import EngineManifest, engine_path
from accuquant.manifest import Manifest
from accuquant.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

TINY = [
    "--steps",
    "4",
    "--group-size",
    "2",
    "--num-trajectories",
    "4",
    "--batch-size",
    "2",
    "--iterations",
    "1",
    "--shared-iterations",
    "1",
]


@pytest.fixture(scope="module")
def output(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo leaves, run on the tiny pipeline."""
    folder = tmp_path_factory.mktemp("demo") / "output"
    settings = {"steps": 4, "group_size": 2, "num_trajectories": 4, "batch_size": 2}
    settings |= {"iterations": 1, "shared_iterations": 1}
    with pytest.MonkeyPatch.context() as patch:
        verification = {"num_images": 4, "steps": 4, "seed": 100}
        tiny = demo.Demo(tiny_pipeline, settings, verification, num_samples=4)
        patch.setitem(demo.DEMOS, "fashion-ddpm", tiny)
        code = main(["demo", "--output-dir", str(folder)])
    # an untrained network diverges where it likes, so the verdict may be either; the exit code follows it
    passed = json.loads((folder / "report.json").read_text())["passed"]
    assert code == (0 if passed else 1)
    return folder


def test_the_demo_leaves_recipe_model_images_and_report(output: Path) -> None:
    recipe = Recipe.load(output / "recipe.safetensors")
    assert len(recipe.groups) == 2
    Manifest.load(output / "model").check_files(output / "model")
    assert sorted(path.name for path in (output / "images").iterdir()) == [
        *(f"{k:05d}.png" for k in range(4)),
        "grid.png",
    ]
    assert len(json.loads((output / "report.json").read_text())["fidelity"]["images"]["psnr"]) == 4
    assert "<html" in (output / "report.html").read_text()


def test_calibrate_says_what_comes_next(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.safetensors"
    assert main(["calibrate", str(tiny_pipeline), "-o", str(recipe), "--weight-bits", "4", *TINY]) == 0
    captured = capsys.readouterr()
    assert f"--recipe {recipe}" in captured.out
    assert "step group 2/2: loss" in captured.err
    assert re.search(r"^Time: \d+ s in all(, [a-z -]+ \d+ s)*$", captured.err, re.MULTILINE)
    assert {layer.weight_bits for layer in Recipe.load(recipe).layers.values()} == {4}


def test_quiet_silences_the_progress(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["calibrate", str(tiny_pipeline), "-o", str(tmp_path / "r.safetensors"), *TINY]
    assert main(["--quiet", *arguments]) == 0
    assert capsys.readouterr().err == ""


def test_check_finds_nothing_in_an_export(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(output / "model" / "unet" / "model.onnx"), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_sample_writes_the_same_images_in_any_batch_size(output: Path, tmp_path: Path) -> None:
    for size in ("1", "3"):
        arguments = [str(output / "model"), "--num-images", "3", "--batch-size", size, "--seed", "7"]
        assert main(["sample", *arguments, "--output-dir", str(tmp_path / size)]) == 0
    for k in range(3):
        first, second = (Image.open(tmp_path / size / f"{k:05d}.png").tobytes() for size in ("1", "3"))
        assert first == second


def test_sample_says_where_the_seconds_went(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(output / "model"), "--num-images", "2", "--output-dir", str(tmp_path / "images")]
    assert main(["sample", *arguments, "--profile", "--json", "-"]) == 0
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert data["calls"]["network"] == 4
    assert sum(data["seconds"].values()) - data["seconds"]["loading"] == pytest.approx(data["total_seconds"])
    assert "Drop-in, scheduler and guidance add" in captured.err
    assert "2 images in" in captured.err


def test_bench_measures_images_a_second_against_latency(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "served.json"
    quick = ["--streams", "1", "--batches", "1,3", "--seconds", "0.02", "--threads", "1"]
    assert main(["bench", str(output / "model"), "--throughput", *quick, "--json", str(data)]) == 0
    found = json.loads(data.read_text())
    assert [(result["streams"], result["batch"]) for result in found["results"]] == [(1, 1), (1, 3)]
    assert (found["steps"], found["rows_per_image"]) == (4, 1)
    for result in found["results"]:
        call = result["call_ms"]["50"] / 1e3
        # one stream: a call after the other, and little between them
        assert 0 < min(result["rows_per_second"]) <= 1.5 * result["batch"] / call
    printed = capsys.readouterr().out
    assert "Most images: 1 stream with batch" in printed
    assert main(["bench", str(output / "model"), "--streams", "2"]) == 2
    assert "--streams: got a choice, expected none: it needs --throughput" in capsys.readouterr().err
    assert main(["bench", str(output / "model"), "--throughput", "--trust-engines"]) == 2
    assert main(["bench", str(output / "model"), "--throughput", "--batches", "1,x"]) == 2


@pytest.mark.usefixtures("in_float")
def test_sample_and_verify_tell_of_calibrated_layers_in_float(
    output: Path,
    tiny_pipeline: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = shutil.copytree(output / "model", tmp_path / "model")
    images = ["--num-images", "2", "--steps", "4"]
    assert main(["sample", str(model), *images, "--output-dir", str(tmp_path / "images")]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("accuquant: warning: ") == 1
    assert "calibrated layers, 100% of their work, do not run in int8 on " in told
    report, page = tmp_path / "report.json", tmp_path / "report.html"
    judged = ["--min-int8-share", "0.9", "--min-psnr", "none", "--min-lowering-psnr", "none"]
    written = ["--json", str(report), "--html", str(page)]
    assert main(["verify", str(model), "--reference", str(tiny_pipeline), *images, *judged, *written]) == 1
    printed = capsys.readouterr()
    assert "warning" not in printed.err, "the file has been told of"
    assert "0.0% of the calibrated work ran in int8" in printed.out
    facts = json.loads(report.read_text())
    assert [(check["value"], check["passed"]) for check in facts["checks"]] == [(0.0, False)]
    assert facts["placement"]["int8_share_run"] == 0.0
    assert set(facts["placement"]["calibrated_in_float"]) == set(
        Recipe.load(model / "recipe.safetensors").layers
    )
    assert any("do not run in int8" in note for note in facts["notes"])
    assert "0 % of it ran in int8 here" in page.read_text()


@pytest.mark.slow
def test_a_class_conditional_pipeline_goes_the_whole_way(
    make_unet: Callable[..., nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    source, recipe, model = tmp_path / "source", tmp_path / "recipe.safetensors", tmp_path / "model"
    DDPMPipeline(make_unet(num_class_embeds=3), DDPMScheduler()).save_pretrained(source)
    start = ["--observer", "minmax", "--rounding", "nearest", "--no-refine", "--weight-bits", "7"]
    assert main(["calibrate", str(source), "-o", str(recipe), *start, *TINY]) == 0
    assert main(["export", str(source), "--recipe", str(recipe), "-o", str(model), "--target", "cpu"]) == 0

    def sample(name: str, *labels: str) -> list[bytes]:
        arguments = ["sample", str(model), "--num-images", "4", "--output-dir", str(tmp_path / name), *labels]
        assert main(arguments) == 0
        return [Image.open(tmp_path / name / f"{k:05d}.png").tobytes() for k in range(4)]

    spread, other = sample("spread"), sample("other", "--class-labels", "0, 2")
    assert spread == sample("named", "--class-labels", "0,1,2,0")
    assert [a == b for a, b in zip(spread, other, strict=True)] == [True, False, False, False]
    capsys.readouterr()
    for labels, message in (("3", "label 3, expected labels from 0 to 2"), ("cat", "no list of whole num")):
        assert main(["--quiet", "sample", str(model), "--class-labels", labels]) == 2
        assert message in capsys.readouterr().err
    limits = ["--min-psnr", "none", "--min-lowering-psnr", "35", "--features", "none"]
    arguments = [str(model), "--reference", str(source), "--num-images", "4", "--layers"]
    assert main(["verify", *arguments, *limits]) == 0


def test_verify_fails_by_its_thresholds(
    output: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        str(output / "model"),
        "--reference",
        str(tiny_pipeline),
        "--num-images",
        "2",
        "--steps",
        "4",
    ]
    report, page = tmp_path / "report.json", tmp_path / "report.html"
    arguments += ["--json", str(report), "--html", str(page), "--engine", "onnxruntime"]
    assert main(["verify", *arguments, "--min-psnr", "200"]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert json.loads(report.read_text())["passed"] is False
    assert page.is_file()
    assert main(["verify", *arguments, "--min-psnr", "none", "--min-lowering-psnr", "none"]) == 0
    assert "NOT JUDGED" in capsys.readouterr().out
    assert json.loads(report.read_text())["passed"] is None
    assert "Not judged" in page.read_text()


def test_evaluate_says_that_a_model_does_not_differ_from_itself(
    output: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, page = shutil.copytree(output / "model", tmp_path / "copy"), tmp_path / "page.html"
    arguments = [str(output / "model"), "--reference", str(tiny_pipeline), "--against", str(copy)]
    options = ["--num-images", "3", "--metrics", "psnr,ssim", "--work-dir", str(tmp_path / "work")]
    assert main(["evaluate", *arguments, *options, "--html", str(page)]) == 0
    printed = capsys.readouterr()
    assert "SSIM, model minus copy: +0 (95 % interval +0 to +0). 3 images show no difference." in printed.out
    assert "images through FP32, int8 and the other export" in printed.err
    assert "model minus copy" in page.read_text()


def test_verify_says_its_verdict_even_where_the_page_cannot_be_written(
    output: Path, tiny_pipeline: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("accuquant.verification.report.html.write_text", full)
    arguments = [str(output / "model"), "--reference", str(tiny_pipeline), "--html", "page.html"]
    arguments += ["--num-images", "2", "--steps", "3", "--features", "none", "--min-psnr", "200"]
    assert main(["verify", *arguments]) == 1
    captured = capsys.readouterr()
    assert "FAILED" in captured.out
    assert "Note: Sampled with 3 steps; the recipe was calibrated with 4." in captured.out.splitlines()
    assert "disk is full" in captured.err


@pytest.mark.slow
def test_export_takes_an_onnx_file_with_and_without_a_recipe(
    output: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx_ir

    from accuquant.export.read.trace import trace
    from accuquant.pipelines.source import load_source

    source = load_source(tiny_pipeline)
    onnx_ir.save(trace(source.network, source.signature), tmp_path / "float.onnx")
    recipe, quantized = str(output / "recipe.safetensors"), tmp_path / "int8.onnx"
    arguments = ["export", str(tmp_path / "float.onnx"), "--recipe", recipe, "-o", str(quantized)]
    assert main([*arguments, "--target", "cpu", "--affine", "zero_point"]) == 0
    assert main(["check", str(quantized)]) == 1, "TensorRT takes no zero-points inside pairs"
    assert main([*arguments, "--target", "cpu"]) == 0
    assert main(["check", str(quantized)]) == 0
    assert "Chosen for cpu: --precision fp32 --lowering rescale" in capsys.readouterr().out
    named = ["--lowering", "per-group", "--precision", "fp16"]
    assert main([*arguments, *named]) == 0
    off_source, off_float, coverage, last = capsys.readouterr().out.splitlines()
    assert off_source.startswith("the float graph is off its source by: ")
    assert off_float.startswith("int8 is off the float graph by: ")
    assert coverage.startswith("int8: ")
    assert last == f"Exported {quantized}"
    assert main(["export", str(tmp_path / "float.onnx"), "-o", str(tmp_path / "observed.onnx")]) == 0
    assert "observed, not calibrated over denoising steps, on random inputs" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "observed.onnx")]) == 0
    observed = Recipe.load(tmp_path / "observed.onnx.recipe.safetensors")
    assert set(observed.layers) == set(Recipe.load(recipe).layers)


def test_an_export_says_what_was_chosen_and_why(
    output: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(tiny_pipeline), "--recipe", str(output / "recipe.safetensors")]
    config, folder = tmp_path / "options.toml", tmp_path / "model"
    config.write_text('[export]\ntarget = "cpu"\naffine = "shift"\n')
    assert main([*arguments, "-o", str(folder), "--config", str(config)]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == "Chosen for cpu: --precision fp32 --lowering rescale"
    assert second.startswith("  by rule: ")
    assert last == f"Exported {folder}"
    assert Manifest.load(folder).files == Manifest.load(output / "model").files


def test_check_names_the_violations_of_a_float_graph(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "float", [x], [y])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
        tmp_path / "m.onnx",
    )
    assert main(["check", str(tmp_path / "m.onnx"), "--json", str(tmp_path / "v.json")]) == 1
    assert "not-quantized" in capsys.readouterr().out
    assert json.loads((tmp_path / "v.json").read_text())[0]["rule"] == "not-quantized"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["calibrate", "{tmp}/none"], 1, "no such folder"),
        (["export", "{pipeline}", "--recipe", "{pipeline}/model_index.json", "-o", "{tmp}/m"], 1, "recipe"),
        (["export", "{tmp}/m.onnx", "-o", "{tmp}/q.onnx"], 1, "no such file"),
        (["export", "{pipeline}", "--inputs", "{recipe}", "-o", "{tmp}/m"], 2, "Leave --inputs out"),
        (["export", "{pipeline}", "--recipe", "{recipe}", "-o", "{pipeline}"], 1, "nothing was overwritten"),
        (
            ["export", "{pipeline}", "--recipe", "{recipe}", "--target", "sm88", "-o", "{tmp}/m"],
            2,
            "cpu or gpu",
        ),
        (["calibrate", "{tmp}/none", "-o", "{tmp}"], 2, "--output: got"),
        (["verify", "{model}", "--reference", "{tmp}/none", "--html", "{tmp}"], 2, "--html: got"),
        (["verify", "{model}", "--reference", "{tmp}/none", "--json", "{tmp}"], 2, "--json: got"),
        (["sample", "{pipeline}"], 1, "accuquant.json"),
        (["sample", "{model}", "--pipeline", "{pipeline}"], 2, "--pipeline: got a choice, expected none"),
        (["sample", "{model}", "--class-labels", "1"], 2, "class labels: got labels 1, 1, 1, 1, ..."),
        (["verify", "{pipeline}", "--reference", "{pipeline}"], 1, "accuquant.json"),
        (["check", "{pipeline}/model_index.json"], 1, "model_index.json"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    code: int,
    message: str,
    output: Path,
    tiny_pipeline: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"tmp": tmp_path, "pipeline": tiny_pipeline, "recipe": output / "recipe.safetensors"}
    names["model"] = output / "model"
    assert main(["--quiet", *(argument.format(**names) for argument in arguments)]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("accuquant: ")
    assert message in error


@pytest.mark.parametrize("channels", [2, 4])
def test_images_that_no_png_holds_are_refused_before_they_are_sampled(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], channels: int
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(output / "model", folder)
    (folder / "unet" / "model.onnx").unlink()  # it would be missed, were it looked for
    manifest = Manifest.load(folder)
    image = replace(manifest.signature.sample, shape=("batch", channels, "height", "width"))
    replace(manifest, signature=replace(manifest.signature, sample=image, output=image)).save(folder)
    assert main(["--quiet", "sample", str(folder), "--output-dir", str(tmp_path / "images")]) == 2
    assert f"images: got {channels} channels, expected 1 or 3" in capsys.readouterr().err


def test_the_manifest_names_its_source_from_anywhere(
    output: Path, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_pipeline.parent)
    arguments = ["export", tiny_pipeline.name, "--recipe", str(output / "recipe.safetensors")]
    assert main([*arguments, "-o", str(tmp_path / "out"), "--target", "cpu"]) == 0
    assert Manifest.load(tmp_path / "out").source == str(tiny_pipeline.resolve())


def test_a_damaged_export_is_refused(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(output / "model", folder)
    (folder / "unet" / "model.onnx").write_bytes((output / "model/unet/model.onnx").read_bytes()[:-100])
    assert main(["--quiet", "sample", str(folder)]) == 1
    assert "model.onnx" in capsys.readouterr().err


def test_bench_times_every_engine_that_is_here_and_recommends_one(
    output: Path, tiny_pipeline: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    arguments = ["bench", str(output / "model"), "--reference", str(tiny_pipeline), "--rounds", "3"]
    assert main([*arguments, "--batch-size", "2", "--threads", "1", "--json", "-"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    timed = {result["name"]: result for result in report["results"]}
    assert {"openvino int8", "openvino fp32", "onnxruntime int8"} <= set(timed)
    assert all(len(result["ms"]) == 3 and min(result["ms"]) > 0 for result in timed.values())
    named = {*timed, *(entry["name"] for entry in report["left_out"])}
    assert {"tensorrt int8", "tensorrt fp16", "torch.compile fp16", "openvino bf16"} <= named
    assert report["recommendation"] in captured.err.splitlines(), "a sentence is not broken into lines"


def test_bench_refuses_an_export_whose_files_changed(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(output / "model", tmp_path / "model")
    graph = tmp_path / "model" / "unet" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    assert main(["bench", str(tmp_path / "model")]) == 1
    assert "other bytes than were exported" in capsys.readouterr().err


@pytest.mark.trt
def test_build_compiles_every_graph_of_an_export_for_every_target(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = tmp_path / "model"
    shutil.copytree(output / "model", model)
    arguments = ["build", str(model), "--backend", "tensorrt_rtx", "--target", "sm86,sm120", "--json", "-"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    built = json.loads(captured.out)
    assert f"--recipe {model / 'recipe.safetensors'} --target sm86 -o {model}-sm86" in captured.err
    graphs = Manifest.load(model).graphs
    assert [Path(entry["engine"]) for entry in built] == [
        engine_path(model, graph, target, "tensorrt_rtx") for graph in graphs for target in ("sm86", "sm120")
    ]
    for entry in built:
        EngineManifest.load(Path(entry["engine"])).check_engine(Path(entry["engine"]))
    Manifest.load(model).check_files(model)


@pytest.mark.trt
def test_sampling_with_tensorrt_says_what_is_missing(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if runtime.cudaDriverGetVersion()[1]:
        pytest.skip("there is a driver")
    arguments = ["--quiet", "sample", str(output / "model"), "--engine", "tensorrt"]
    assert main([*arguments, "--output-dir", str(tmp_path / "images")]) == 1
    assert "got no NVIDIA driver" in capsys.readouterr().err
    assert not (tmp_path / "images").exists()
