from __future__ import annotations

import gc
import importlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import DDIMScheduler
from other_process import OtherProcess
from torch import nn

from accuquant._util.progress import Silent
from accuquant.cli.main import main
from accuquant.errors import UsageError, VerificationError
from accuquant.groups import StepGroups
from accuquant.manifest import RECIPE_NAME, Manifest
from accuquant.networks.network import call, float_weights, model_hash, quantizable_layers, signature_of
from accuquant.networks.simulate import simulate
from accuquant.pipelines.source import Source
from accuquant.qparams import WEIGHT_AXIS, LayerQParams, fingerprint
from accuquant.recipe import GroupResult, Recipe
from accuquant.runtime.engine_model import EngineModel
from accuquant.runtime.int8_use import Int8Use, LayerRun
from accuquant.units.cluster import Cluster
from accuquant.verification import Thresholds, verify
from accuquant.verification.measure.subject import Subject
from accuquant.verification.verification_settings import VerificationSettings

GROUPS = StepGroups((1000, 500, 0))
NO_LIMITS = Thresholds(min_psnr=None, min_lowering_psnr=None)


def recipe_of(source: Source, activation_scale: float = 0.02) -> Recipe:
    layers = {}
    for name, weight in float_weights(source.network).items():
        if name in ("conv_in", "conv_out") or "time" in name:
            continue
        kind = "linear" if weight.ndim == 2 else "conv2d"
        scale = np.full(weight.shape[WEIGHT_AXIS[kind]], np.abs(weight).max() / 127, np.float32)
        scales = np.array([2 * activation_scale, activation_scale], np.float32)
        layers[name] = LayerQParams(name, kind, weight.shape, fingerprint(weight), scale, scales)
    return Recipe(
        GROUPS, layers, source.signature, dict(source.scheduler.config), model_hash(source.network),
        calibration={"sensitivity": {name: float(k) for k, name in enumerate(layers)}},
        results=(GroupResult(2.0, 1.0), GroupResult(1.0, 1.0, "rolled_back", "the loss rose")),
    )  # fmt: skip


@pytest.fixture(scope="module")
def source(make_unet: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Source:
    network = make_unet(sample_size=16)
    folder = tmp_path_factory.mktemp("source")
    scheduler = DDIMScheduler(clip_sample=False)
    return Source("toy", folder, "DDIMPipeline", "unet", network, scheduler, signature_of(network))


def export(folder: Path, source: Source, recipe: Recipe) -> Path:
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.onnx").write_bytes(bytes(1000))
    recipe.save(folder / RECIPE_NAME)
    Manifest(
        pipeline_class="DDIMPipeline", component="unet", lowering="rescale", precision="fp32", opset=21,
        graphs=("unet/model.onnx",), groups=GROUPS, signature=source.signature,
        model_hash=recipe.model_hash, num_inference_steps=4, accuquant_version="0.1.0",
    ).save(folder)  # fmt: skip
    return folder


class TorchEngine:
    """Stands for an EngineModel: the simulated network behind numpy, with an error of its own."""

    int8_use: Int8Use | None = None
    chosen: tuple[str, ...] = ()

    def __init__(self, network: nn.Module, error: float) -> None:
        self.network = network
        self.error = error

    def __call__(
        self, sample: npt.NDArray[Any], timestep: float, conditioning: Mapping[str, npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        output = call(self.network, torch.from_numpy(sample), torch.tensor(timestep)).numpy()
        shifted: npt.NDArray[Any] = output + np.float32(self.error)
        return shifted

    def activate(self) -> None:
        pass

    def __enter__(self) -> TorchEngine:
        return self

    def __exit__(self, *fault: object) -> None:
        pass


@pytest.fixture
def vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every machine a processor of which there is nothing to note."""
    monkeypatch.setattr("accuquant.verification.measure.subject.cpu_flags", lambda: {"avx2", "avx512_vnni"})


@pytest.fixture
def folder(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vnni: None) -> Path:
    recipe = recipe_of(source)
    network = simulate(source.network, recipe)
    monkeypatch.setattr(
        EngineModel, "from_folder", lambda folder, engine, **_: TorchEngine(network, error=1e-5)
    )
    return export(tmp_path / "out", source, recipe)


def test_loss_is_split_into_quantization_and_lowering(folder: Path, source: Source) -> None:
    report = verify(
        folder,
        source,
        num_images=5,
        batch_size=2,
        steps=4,
        features="none",
        thresholds=Thresholds(min_psnr=20.0),
    )
    fidelity, quantization, lowering = report.fidelity, report.quantization, report.lowering
    assert lowering.summary["psnr"].median > quantization.summary["psnr"].median + 10
    assert fidelity.psnr == pytest.approx(quantization.psnr, abs=1.0)
    assert report.passed
    assert [check.limit for check in report.verdict.checks] == [20.0, 35.0]


def test_workers_make_the_same_report(folder: Path, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the times, which are taken here; batches come in an order that is drawn."""
    engines, done = [], Told()

    @contextmanager
    def engine_of(_cluster: Any, job: Any, _roots: Any, _say: Any) -> Iterator[OtherProcess]:
        engines.append(OtherProcess(source, job(), 3))
        yield engines[-1]

    def report(**cluster: Any) -> dict[str, Any]:
        found = verify(
            folder, source, num_images=11, batch_size=2, steps=3, features="tiny_features:quarters", **cluster
        )
        return {name: value for name, value in found.to_dict().items() if name != "latencies"}

    serial = report()
    monkeypatch.setattr(importlib.import_module("accuquant.verification.verify"), "engine_of", engine_of)
    assert report(cluster=Cluster(3), progress=done) == serial
    assert engines[0].computed == ["batches"]
    assert done.counts == [3 * (3 * 6 + 2)] * 2


class Told(Silent):
    """Counts how far the stage of images has come."""

    counts: list[int]

    def stage(self, name: str, total: int) -> None:
        self.counts = [total, 0]

    def advance(self, units: int = 1) -> None:
        self.counts[1] += units


def test_the_report_tells_what_was_run(folder: Path, source: Source) -> None:
    report = verify(folder, source, num_images=2, steps=4, seed=3, features="none")
    assert report.settings["bits"] == "W8A8"
    assert report.settings["features"] == "none"
    assert report.gallery.first[0].seed == 3
    assert report.notes == ()
    assert [group.status for group in report.groups] == ["learned", "rolled_back"]
    assert (report.groups[1].start, report.groups[1].end) == (500, 0)
    assert report.sensitivity[0].error == max(layer.error for layer in report.sensitivity)
    assert report.sizes == {
        "fp32_weights": 4 * sum(p.numel() for p in source.network.parameters()),
        "engine_files": 1000,
    }
    assert report.placement["int8_layers"] < len(quantizable_layers(source.network))
    assert 0.5 < report.placement["int8_mac_share"] < 1
    assert [latency.name for latency in report.latencies] == ["FP32 PyTorch", "int8 openvino"]


def test_the_int8_share_that_ran_is_told_and_judged(
    folder: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = (LayerRun("conv1", 30, "int8", "k"), LayerRun("conv2", 10, "fp32", "k"))
    monkeypatch.setattr(TorchEngine, "int8_use", Int8Use(runs))
    limits = replace(NO_LIMITS, min_int8_share=0.8)
    report = verify(folder, source, num_images=2, steps=4, features="none", thresholds=limits)
    assert report.passed is False
    assert report.placement["int8_share_run"] == 0.75
    assert report.placement["calibrated_in_float"] == ["conv2"]
    assert [note for note in report.notes if "1 of 2 calibrated layers" in note] == list(report.notes)
    with pytest.raises(UsageError, match=r"min_int8_share: got a limit for an engine that does not say"):
        verify(folder, source, engine="onnxruntime", num_images=2, thresholds=limits)


def test_the_calibrated_number_of_steps_is_the_default(folder: Path, source: Source) -> None:
    report = verify(folder, source, num_images=2, features="none", thresholds=NO_LIMITS)
    assert (len(report.timesteps), report.settings["steps"], report.notes) == (4, 4, ())


def test_the_same_seeds_give_the_same_figures(folder: Path, source: Source) -> None:
    first = verify(folder, source, num_images=3, batch_size=3, steps=3, features="none", thresholds=NO_LIMITS)
    again = verify(folder, source, num_images=3, batch_size=3, steps=3, features="none", thresholds=NO_LIMITS)
    assert first.fidelity == again.fidelity
    assert first.notes == ("Sampled with 3 steps; the recipe was calibrated with 4.",)


@pytest.mark.usefixtures("vnni")
def test_seeds_that_were_calibrated_on_are_counted(source: Source, tmp_path: Path) -> None:
    settings = {"seed": 100, "num_trajectories": 8}
    recipe = replace(recipe_of(source), calibration={"settings": settings})
    folder = export(tmp_path / "out", source, recipe)

    def notes(seed: int) -> tuple[str, ...]:
        judged = VerificationSettings(num_images=4, steps=4, seed=seed)
        return Subject.load(folder, source, judged).check()

    assert notes(96) == notes(108) == ()
    assert notes(97)[0].startswith("1 of the seeds were calibrated on")
    assert notes(102)[0].startswith("4 of the seeds were calibrated on")


@pytest.mark.usefixtures("vnni")
def test_layers_that_calibration_gave_less_care_are_named(source: Source, tmp_path: Path) -> None:
    fact = {"inputs": 72, "groups": 1, "blocks": 1, "rows": 8192, "distinct": 13}
    recipe = replace(recipe_of(source), calibration={"rounding": {"mid.conv": fact}})
    folder = export(tmp_path / "out", source, recipe)
    (note,) = Subject.load(folder, source, VerificationSettings(num_images=4, steps=4)).check()
    assert "1 layer (mid.conv)" in note
    assert "13 for 72 columns" in note


@pytest.mark.parametrize(("flags", "told"), [({"avx2"}, True), ({"avx2", "avx512_vnni"}, False)])
def test_a_processor_that_saturates_is_told_of(
    flags: set[str], told: bool, folder: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accuquant.verification.measure.subject.cpu_flags", lambda: flags)
    report = verify(folder, source, num_images=2, steps=4, features="none", thresholds=NO_LIMITS)
    assert [note for note in report.notes if "--weight-bits 7" in note] == list(report.notes)
    assert bool(report.notes) == told


def test_features_of_the_user_give_a_distance(folder: Path, source: Source) -> None:
    report = verify(
        folder,
        source,
        num_images=3,
        steps=2,
        features=f"{__name__}:means",
        thresholds=Thresholds(max_fid=1.0),
    )
    assert report.fid is not None
    assert 0 <= report.fid.simulated < 1


def means(images: torch.Tensor) -> torch.Tensor:
    return torch.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], 1)


def live_bytes() -> int:
    """Return the bytes of all tensors that Python holds."""
    gc.collect()
    storages = {x.untyped_storage() for x in gc.get_objects() if type(x) is torch.Tensor}
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_nothing_but_a_few_numbers_stays_of_an_image(folder: Path, source: Source) -> None:
    steps, batch, last = 4, 2, 9
    calls, taken = itertools.count(), {}

    def decode(latents: torch.Tensor) -> torch.Tensor:
        call = next(calls) - 1  # the first asks for the shape; then three branches a batch
        if call in (3 * 5, 3 * last):
            taken[call // 3] = live_bytes()
        return (latents / 2 + 0.5).clamp(0, 1)

    report = verify(
        folder,
        source,
        num_images=batch * (last + 1),
        batch_size=batch,
        steps=steps,
        features=f"{__name__}:means",
        thresholds=NO_LIMITS,
        decode=decode,
    )
    assert len(report.fidelity.psnr) == 20
    # by the fifth batch the first eight images and the two worst stay, for their pictures
    numbers = 3 * steps * 8  # three pairs of branches, float64
    assert taken[last] - taken[5] <= batch * (last - 5) * numbers
    image = 4 * 16 * 16
    assert numbers < image / 8


def test_memory_that_runs_out_names_the_stage_and_the_batch(folder: Path, source: Source) -> None:
    def decode(latents: torch.Tensor) -> torch.Tensor:
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return latents

    wanted = (
        r"stage 'denoising with FP32, .*': got no memory left on cpu with batches of 6.*--batch-size 3,.*"
    )
    with pytest.raises(VerificationError, match=wanted + "nothing was written"):
        verify(folder, source, num_images=6, batch_size=6, steps=1, features="none", decode=decode)


def test_a_device_that_no_torch_knows_is_refused_before_the_pipeline_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(folder), "--reference", "nothing/here", "--device", "tpu"]) == 2
    assert "--device tpu: got an unknown name, expected auto, cpu" in capsys.readouterr().err


def test_another_reference_is_refused(
    folder: Path, source: Source, make_unet: Callable[..., nn.Module]
) -> None:
    other = Source(
        "other",
        source.folder,
        "DDIMPipeline",
        "unet",
        make_unet(1, sample_size=16),
        source.scheduler,
        source.signature,
    )
    with pytest.raises(VerificationError, match="reference 'other': got weights other than"):
        verify(folder, other)


def test_another_scheduler_is_refused(folder: Path, source: Source) -> None:
    scheduler = DDIMScheduler(clip_sample=True)
    other = Source("toy", source.folder, "DDIMPipeline", "unet", source.network, scheduler, source.signature)
    with pytest.raises(VerificationError, match="clip_sample: False -> True"):
        verify(folder, other)
    report = verify(
        folder,
        other,
        num_images=1,
        steps=1,
        allow_other_scheduler=True,
        features="none",
        thresholds=NO_LIMITS,
    )
    assert "clip_sample: False -> True" in report.notes[0]


def test_a_limit_on_a_distance_needs_features(folder: Path, source: Source) -> None:
    with pytest.raises(UsageError, match="max_fid"):
        verify(folder, source, num_images=2, features="none", thresholds=Thresholds(max_fid=1.0))


def test_an_unknown_decoder_is_refused(folder: Path, source: Source, tmp_path: Path) -> None:
    (tmp_path / "source" / "movq").mkdir(parents=True)
    latent = Source(
        "latent",
        tmp_path / "source",
        "LDMPipeline",
        "unet",
        source.network,
        source.scheduler,
        source.signature,
    )
    with pytest.raises(VerificationError, match="decode=function"):
        verify(folder, latent, features="none")


def test_conditioning_that_the_network_does_not_take_is_refused(folder: Path, source: Source) -> None:
    with pytest.raises(VerificationError, match="conditioning \\['class_labels'\\]"):
        verify(folder, source, num_images=2, conditioning={"class_labels": torch.zeros(2)})


def test_the_layers_of_a_bfloat16_export_cannot_be_compared(folder: Path, source: Source) -> None:
    replace(Manifest.load(folder), precision="bf16").save(folder)
    with pytest.raises(VerificationError, match=r"--layers: got a bf16 export.*Leave --layers out"):
        verify(folder, source, num_images=2, steps=4, features="none", layers=True)


@pytest.mark.parametrize("option", ["num_images", "steps", "batch_size"])
def test_counts_below_one_are_refused(folder: Path, source: Source, option: str) -> None:
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')}: got 0"):
        verify(folder, source, **{option: 0})  # type: ignore[arg-type]
