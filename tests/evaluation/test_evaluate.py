from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from accuquant.errors import UsageError, VerificationError
from accuquant.evaluation import Evaluation, EvaluationSettings, evaluate
from accuquant.evaluation.shard import Shards
from accuquant.evaluation.store import EvaluationStore
from accuquant.pipelines.source import Source
from accuquant.pipelines.source_job import source_roots
from accuquant.pipelines.task import Task
from accuquant.units.travelling import Unpacker, pack
from accuquant.units.units import InMemory, KeptUnits
from accuquant.verification.measure.features import extract, fid_to_fp32, load_features
from accuquant.verification.measure.metrics import psnr

Export = Callable[..., Path]
SETTINGS = EvaluationSettings(
    metrics=("fid2fp32", "psnr", "ssim"), num_images=6, batch_size=1, shard_size=2, seed=3, resamples=20,
    features="tiny_features:quarters",
)  # fmt: skip
FASHION: dict[str, Any] = {"features": "auto", "batch_size": 3, "shard_size": 3}


def stored_images(folder: Path) -> torch.Tensor:
    """Return the PNG files of a folder, [N, 1, H, W] in [0, 1]."""
    files = sorted(folder.glob("*.png"))
    arrays = [np.asarray(Image.open(path).convert("L"), np.float32) / 255 for path in files]
    return torch.from_numpy(np.stack(arrays))[:, None]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the images of `result` are."""
    return tmp_path_factory.mktemp("kept") / "images"


@pytest.fixture(scope="module")
def result(export: Export, gray_source: Source, kept: Path) -> Evaluation:
    settings = replace(
        SETTINGS, **FASHION, metrics=("fid2fp32", "psnr", "ssim", "is"), keep_images=kept,
        against=export(gray_source, "other", 0.05),
    )  # fmt: skip
    return evaluate(export(gray_source), gray_source, settings)


def test_figures_are_those_of_the_images(result: Evaluation, kept: Path) -> None:
    """The PNG files are rounded to 8 bits, so the oracle's figures are close, not equal."""
    fp32, int8 = (stored_images(kept / name) for name in ("fp32", "int8"))
    assert len(fp32) == 6
    assert result.images["psnr.int8"] == pytest.approx(psnr(int8, fp32).tolist(), rel=0.05)
    assert result.figure("psnr").interval.value == pytest.approx(np.mean(result.images["psnr.int8"]))
    extractor = load_features("fashion", (1, 32, 32))
    assert extractor is not None
    distance = fid_to_fp32(extractor, int8, fp32)
    assert result.figure("fid2fp32").interval.value == pytest.approx(distance, rel=0.2)


def test_every_figure_has_an_interval_around_it(result: Evaluation) -> None:
    assert {(f.metric, f.branch) for f in result.figures} == {
        *(("fid2fp32", b) for b in ("int8", "other")),
        *(("psnr", b) for b in ("int8", "other")),
        *(("ssim", b) for b in ("int8", "other")),
        *(("is", b) for b in ("fp32", "int8", "other")),
    }
    for figure in result.figures:
        assert figure.interval.low <= figure.interval.value <= figure.interval.high
    assert all(f.interval.high > f.interval.low for f in result.figures if f.metric != "is")


def test_another_export_is_compared_in_words(result: Evaluation) -> None:
    psnr_sentence = next(s for s in result.sentences if s.startswith("PSNR"))
    assert psnr_sentence.startswith("PSNR, out minus other: +")
    assert psnr_sentence.endswith("They differ: out is better.")


def test_an_export_does_not_differ_from_itself(export: Export, tiny_source_8: Source) -> None:
    folder = export(tiny_source_8)
    result = evaluate(folder, tiny_source_8, replace(SETTINGS, against=export(tiny_source_8, "same")))
    against = [d for d in result.differences if d.second == "other"]
    assert [d.differ for d in against] == [False] * 3
    assert all(
        "6 images show no difference." in result.sentences[result.differences.index(d)] for d in against
    )


def test_the_number_of_shards_changes_nothing(export: Export, tiny_source_8: Source) -> None:
    """Batches are the same, and every sum is taken in the order of the images."""
    folder = export(tiny_source_8)
    whole, parts = (
        evaluate(folder, tiny_source_8, replace(SETTINGS, shard_size=size)).to_dict() for size in (6, 2)
    )
    for data in (whole, parts):
        del data["settings"]["shard_size"]
    assert whole == parts


def watch_shards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that the names of shards are put into when they are computed."""
    computed: list[str] = []
    compute = Shards.__call__

    def watched(self: Shards, unit: str) -> Any:
        computed.append(unit)
        return compute(self, unit)

    monkeypatch.setattr(Shards, "__call__", watched)
    return computed


class Killed(KeptUnits):
    """Computes a number of units and dies."""

    left = 2

    def map(self, stage: str, units: Any, compute: Any, done: Any, *, anywhere: bool = False) -> Any:
        def mortal(unit: str) -> Any:
            if not Killed.left:
                raise KeyboardInterrupt
            Killed.left -= 1
            return compute(unit)

        return super().map(stage, units, mortal, done)


def test_an_interrupted_run_goes_on_to_the_same_result(
    export: Export, tiny_source_8: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accuquant.evaluation.store.WINDOW", 2)
    folder = export(tiny_source_8)
    uninterrupted = evaluate(folder, tiny_source_8, SETTINGS, units=lambda _, engine: InMemory(engine))
    monkeypatch.setattr(Killed, "left", 2)
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, tiny_source_8, SETTINGS, units=Killed)
    computed = watch_shards(monkeypatch)
    assert evaluate(folder, tiny_source_8, SETTINGS).to_json() == uninterrupted.to_json()
    assert computed == ["00000004-00000006"]
    assert not folder.with_name("out.evaluation").exists()


def test_more_images_go_on_where_fewer_ended(
    export: Export, tiny_source_8: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, work = export(tiny_source_8), tmp_path / "work"
    evaluate(folder, tiny_source_8, replace(SETTINGS, num_images=2), work=work)
    computed = watch_shards(monkeypatch)
    more = evaluate(folder, tiny_source_8, SETTINGS, work=work)
    assert computed == ["00000002-00000004", "00000004-00000006"]
    assert more.to_json() == evaluate(folder, tiny_source_8, SETTINGS).to_json()


def test_shards_of_other_settings_are_refused(tmp_path: Path) -> None:
    EvaluationStore(tmp_path / "work", {"seed": 3})
    with pytest.raises(VerificationError, match=r"other settings \(seed: 3 -> 4\).*delete that folder"):
        EvaluationStore(tmp_path / "work", {"seed": 4})


def test_a_shard_is_computed_from_what_travels_to_another_process(
    export: Export, tiny_source_8: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = source_roots(tiny_source_8)
    folder, results = export(tiny_source_8), {}

    class Elsewhere(InMemory):
        def map(self, stage: str, units: Any, compute: Any, done: Any, *, anywhere: bool = False) -> Any:
            parcel = pack(compute, roots)
            moved = Unpacker(roots).unpack(parcel.data, parcel.parts.__getitem__)
            results[stage] = super().map(stage, units, moved, done)
            return results[stage]

    there = evaluate(folder, tiny_source_8, SETTINGS, units=lambda *_: Elsewhere())
    assert there.to_json() == evaluate(folder, tiny_source_8, SETTINGS).to_json()
    assert len(results["images-00000"]) == 3


def test_real_images_are_compared_with_each_branch(
    export: Export, gray_source: Source, tmp_path: Path
) -> None:
    """The oracle: FID of the stored images, and precision by brute force."""
    real = tmp_path / "real"
    real.mkdir()
    rng = np.random.default_rng(0)
    for k in range(9):
        Image.fromarray(rng.integers(0, 256, (32, 32)).astype(np.uint8)).save(real / f"{k}.png")
    settings = replace(
        SETTINGS, **FASHION, metrics=("fid", "sfid", "precision"), real=real, keep_images=tmp_path / "images"
    )
    result = evaluate(export(gray_source), gray_source, settings)
    extractor = load_features("fashion", (1, 32, 32))
    assert extractor is not None
    int8 = stored_images(tmp_path / "images" / "int8")
    distance = fid_to_fp32(extractor, int8, stored_images(real))
    assert result.figure("fid").interval.value == pytest.approx(distance, rel=1e-2)
    assert result.figure("sfid").interval.value > 0
    truth, own = extract(extractor, stored_images(real)), extract(extractor, int8)
    reach = np.sort(np.linalg.norm(truth[:, None] - truth[None], axis=2), axis=1)[:, 3]
    hits = (np.linalg.norm(own[:, None] - truth[None], axis=2) <= reach).any(1)
    assert result.figure("precision").interval.value == pytest.approx(hits.mean())
    assert {f.metric for f in result.figures} == {"fid", "sfid", "precision", "recall"}


def test_labels_change_the_images(export: Export, class_source: Source) -> None:
    folder = export(class_source)
    settings = replace(SETTINGS, metrics=("psnr",), num_images=4, batch_size=2)
    plain, chosen, same = (
        evaluate(folder, class_source, replace(settings, class_labels=labels)).images["psnr.int8"]
        for labels in (None, (3,), (0, 1, 2, 3))
    )
    assert plain == same  # every class in turn
    assert plain[3] == chosen[3]
    assert plain[0] != chosen[0]


def test_json_holds_what_the_module_says(result: Evaluation) -> None:
    data = json.loads(result.to_json())
    assert list(data) == [
        "schema_version", "model", "settings", "versions", "figures", "differences", "sentences", "by_count",
        "by_step", "images", "notes",
    ]  # fmt: skip
    assert data["by_count"]["counts"] == list(range(1, 7))
    assert data["by_count"]["curves"]["fid2fp32"][0] is None
    assert data["by_count"]["curves"]["psnr"][-1] == pytest.approx(data["figures"][2]["value"])
    assert len(data["by_step"]["int8"]["median"]) == 3


def test_a_small_evaluation_says_what_it_cannot_be_compared_with(result: Evaluation) -> None:
    assert any("6 are fewer than the 10,000 to 50,000" in note for note in result.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ("fdi",)}, r"metrics 'fdi': got an unknown name, expected fid2fp32 or psnr"),
        ({"metrics": ()}, "metrics ''"),
        ({"metrics": ("fid",)}, r"--metrics fid: got no real images, expected --real"),
        ({"real": Path()}, r"--real: got metrics that need no real images"),
        ({"num_images": 1}, r"--metrics fid2fp32: got one image"),
        ({"resamples": 3}, r"--resamples: got 3, expected an integer of at least 20"),
        ({"weights": {"vgg": Path()}}, "weights 'vgg': got an unknown name, expected inception or"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(SETTINGS, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ("clip",)}, r"--metrics clip: got no prompts.*--prompts FILE"),
        ({"features": "none"}, r"--metrics fid2fp32: got no feature network"),
        ({"metrics": ("is",)}, r"--metrics is: got --features tiny_features:quarters, which gives features"),
        ({"class_labels": (1,)}, r"--class-labels: got a choice, expected none"),
    ],
)
def test_metrics_that_cannot_be_measured_are_refused_before_the_first_image(
    changes: dict[str, Any],
    message: str,
    export: Export,
    tiny_source_8: Source,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Shards, "__call__", None)
    with pytest.raises(UsageError, match=message):
        evaluate(export(tiny_source_8), tiny_source_8, replace(SETTINGS, **changes))


def test_labels_beyond_the_classes_are_refused(export: Export, class_source: Source) -> None:
    settings = replace(SETTINGS, metrics=("psnr",), class_labels=(1, 4))
    with pytest.raises(UsageError, match="--class-labels: got label 4, expected labels from 0 to 3"):
        evaluate(export(class_source), class_source, settings)


def test_an_export_of_another_model_is_refused(
    export: Export, tiny_source_8: Source, class_source: Source
) -> None:
    settings = replace(SETTINGS, against=export(class_source, "other"))
    with pytest.raises(VerificationError, match=r"--against '.*other': got an export of another model"):
        evaluate(export(tiny_source_8), tiny_source_8, settings)


def test_statistics_of_another_width_are_refused(export: Export, gray_source: Source, tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", mu=np.zeros(20), sigma=np.eye(20))
    settings = replace(SETTINGS, **FASHION, metrics=("fid",), real=tmp_path / "s.npz")
    with pytest.raises(
        VerificationError, match="statistics of 20 features, expected 64, the width of 'fashion'"
    ):
        evaluate(export(gray_source), gray_source, settings)


@pytest.mark.parametrize("metric", ["sfid", "precision"])
def test_statistics_that_lack_what_a_metric_compares_with_are_refused(
    metric: str, export: Export, gray_source: Source, tmp_path: Path
) -> None:
    np.savez(tmp_path / "s.npz", mu=np.zeros(64), sigma=np.eye(64))
    settings = replace(SETTINGS, **FASHION, metrics=(metric,), real=tmp_path / "s.npz")
    with pytest.raises(
        UsageError, match=rf"--metrics {metric}: got --real '.*' without what it compares with"
    ):
        evaluate(export(gray_source), gray_source, settings)


def test_statistics_alone_are_enough_for_fid(export: Export, gray_source: Source, tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", mu=np.full(64, 100.0), sigma=np.zeros((64, 64)))
    settings = replace(
        SETTINGS, **FASHION, metrics=("fid",), real=tmp_path / "s.npz", keep_images=tmp_path / "images"
    )
    result = evaluate(export(gray_source), gray_source, settings)
    extractor = load_features("fashion", (1, 32, 32))
    assert extractor is not None
    own = extract(extractor, stored_images(tmp_path / "images" / "int8")).astype(np.float64)
    wanted = ((own.mean(0) - 100) ** 2).sum() + own.var(0, ddof=1).sum()
    assert result.figure("fid").interval.value == pytest.approx(wanted, rel=1e-4)


def test_a_task_that_the_pipeline_does_not_take_is_refused(export: Export, tiny_source_8: Source) -> None:
    with pytest.raises(UsageError, match="--prompts"):
        evaluate(export(tiny_source_8), tiny_source_8, SETTINGS, task=Task(prompts=("a",)))
